"""A draft head that knows the first tokens alone: the same bits for these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.engines.onnx.editable_graph import editable
from lensmith.runtimes.engines.onnx.narrow_head import narrow
from lensmith.runtimes.engines.onnx.onnx_decoder import OnnxDecoder
from lensmith.runtimes.generation.common_tokens import COMMON, common
from lensmith.runtimes.prompt.positions import text_positions

TOKENS = 100
CASES = {
    "int4": Options(),
    "int4 by row": Options(group_size=0),
    "int4 with zero points": Options(symmetric=False),
    "int8": Options(precision="int8"),
    "fp32": Options(precision="fp32"),
}
NARROWED = ("int4", "int4 with zero points", "fp32")  # others change their weights on the way to the product


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("tarn-2b", tmp_path_factory.mktemp("head") / "source", tiny=True)


@pytest.mark.parametrize("name", CASES)
def test_the_first_logits_are_the_same(source: Path, tmp_path: Path, name: str) -> None:
    """Of all tokens that go in, also where both work on the same states, one after the other."""
    path = export(prepare(source, CASES[name]), tmp_path / "bundle", golden="never").path / "mtp.onnx"
    whole, first = (OnnxDecoder(path, capacity=64, threads=1, tokens=tokens) for tokens in (0, TOKENS))
    one, both = whole.open_states(), whole.open_states()
    random = np.random.default_rng(0)
    for count, decoder in ((3, first), (1, whole), (1, first), (2, whole), (1, whole), (1, first)):
        hidden = random.normal(0, 1, (count, whole.hidden)).astype(np.float32)
        step = Step(random.integers(0, whole.vocab, count), text_positions(count, one.length), hidden_states=hidden)
        expected, found = whole.run(one, step).copy(), decoder.run(both, step)
        assert np.array_equal(found, expected[:, : found.shape[1]])
        assert np.array_equal(both.hidden_states, one.hidden_states)
        assert found.shape[1] == (TOKENS if decoder is first and name in NARROWED else whole.vocab)
    assert whole.vocab > TOKENS


def test_a_graph_of_another_form_stays(source: Path, tmp_path: Path) -> None:
    path = export(prepare(source, Options()), tmp_path / "bundle", golden="never").path / "mtp.onnx"
    model = editable(path)
    before = model.SerializeToString()
    assert not narrow(model, 1 << 20)
    for node in model.graph.node:
        if b"logits" in node.output:
            node.output[0] = b"else"
    changed = model.SerializeToString()
    assert not narrow(model, TOKENS)
    assert model.SerializeToString() == changed != before


def test_languages_of_rare_tokens_take_all() -> None:
    text = np.arange(1000)
    assert common(text, 248_044)
    assert common(np.array([], np.int64), 248_044)
    assert common(np.concatenate([text + COMMON, text]), 248_044)
    assert not common(np.concatenate([text, text + COMMON]), 248_044)
    assert common(np.concatenate([text, np.full(200, 248_050)]), 248_044)
    assert [common(np.array([1] * (100 - rare) + [COMMON] * rare), 248_044) for rare in (10, 11)] == [True, False]
