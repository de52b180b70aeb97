"""Hidden states of bundles: each form of graph, each precision, llama.cpp too, beside answers that go on as before.

Those of every family beside transformers: the ladder in tests/helpers/ladder.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import HiddenStates, Model, load, user_message
from lensmith.runtimes.engines.contract import Floats, Step
from lensmith.runtimes.engines.onnx.editable_graph import editable
from lensmith.runtimes.engines.onnx.hidden_graph import add_hidden_states
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.graph_limits.onnx_messages import parse_model
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.targets.errors import ContextFull, InputError

from tests.helpers.extras import Ran
from tests.paths import TINY

pytest.importorskip("onnx_ir", reason="needs lensmith[export]")
PICTURES = [TINY / "heldout" / "images" / f"{name}.png" for name in ("0001", "0101", "0701")]
QUESTION = "What word is written?"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    from lensmith.exporters.pipeline import Options, export, prepare

    @cache
    def make(model: str, precision: str = "int4", format: str = "onnx") -> Path:
        out = tmp_path_factory.mktemp(model) / f"{format}-{precision}"
        return export(prepare(TINY / model, Options(precision=precision, format=format)), out, golden="never").path

    return make


def opened(path: Path, **options: Any) -> Model:
    model = load(path, **options)
    assert isinstance(model, Model)
    return model


def asked(model: Model, picture: Path = PICTURES[0], **chosen: Any) -> HiddenStates:
    return model.hidden_states([user_message(QUESTION, [picture])], **chosen)


def cosines(ours: Floats, theirs: Floats) -> Floats:
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    found: Floats = (ours * theirs).sum(axis=-1) / lengths
    return found


@pytest.mark.parametrize("model", ["qwen3_vl", "qwen3_5", "llava"])
@pytest.mark.parametrize(("precision", "least"), [("int8", 0.99), ("int4", 0.9)])
def test_rounded_weights_turn_them_little(
    bundles: Callable[..., Path], model: str, precision: str, least: float
) -> None:
    """Measured are 0.997 and 0.916 at least: int4 without calibration, on a width of 128."""
    floats, rounded = opened(bundles(model, "fp32")), opened(bundles(model, precision))
    for picture in PICTURES:
        exact, found = asked(floats, picture), asked(rounded, picture)
        assert exact.ids.tolist() == found.ids.tolist()
        assert cosines(exact.states, found.states).min() > least
        others = [asked(floats, other).pooled() for other in PICTURES if other != picture]
        assert cosines(exact.pooled(), found.pooled()) > max(cosines(exact.pooled(), other) for other in others)


@pytest.mark.parametrize("model", ["qwen3_vl", "qwen3_5", "llava"])
def test_llamacpp_gives_the_same(bundles: Callable[..., Path], model: str) -> None:
    """Both compute in float32; llama.cpp's vision encoders round a part of theirs to float16 (measured 5e-4)."""
    pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
    ours, theirs = opened(bundles(model, "fp32")), opened(bundles(model, "f32", "gguf"))
    long = "Say nothing. " * 40  # more tokens than llama.cpp is given at once
    assert relative_error(ours.hidden_states(long).states, theirs.hidden_states(long).states) < 1e-5
    assert relative_error(asked(ours).states, asked(theirs).states) < 3e-3
    decoder = theirs.decoder
    states, ids, places = decoder.open_states(), np.arange(20, 120), text_positions(100, 0)
    logits = decoder.run(states, Step(ids, places, num_logits=3, num_hidden_states=70)).copy()
    assert states.hidden_states.shape == (70, decoder.hidden)
    np.testing.assert_array_equal(logits, decoder.run(decoder.open_states(), Step(ids, places, num_logits=3)))


def test_they_come_behind_steps_without_any(bundles: Callable[..., Path]) -> None:
    """The graph is changed for them while a conversation goes on."""
    decoder = opened(bundles("qwen3_vl", "fp32")).decoder
    found = []
    for first in (0, 1):
        states = decoder.open_states()
        decoder.run(states, Step(np.array([20]), text_positions(1, 0), num_hidden_states=first))
        decoder.run(states, Step(np.array([21]), text_positions(1, 1), num_hidden_states=1))
        found.append(states.hidden_states.copy())
    assert found[0].shape == (1, decoder.hidden)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_rank_is_a_product_with_rows_of_the_head(bundles: Callable[..., Path]) -> None:
    """As docs/embed.md says of models that answer yes or no."""
    from safetensors.numpy import load_file

    model = opened(bundles("qwen3_vl", "fp32"))
    pictures = [TINY / "heldout" / "images" / f"{name}.png" for name in ("0501", "0502")]
    messages = [user_message("Do both pictures show a cross?", pictures)]
    answer = model.generate(messages, max_new_tokens=1, logprobs=20)
    assert answer.read() == "no"
    assert answer.logprobs is not None
    likely = {token.spelled: token.logprob for token in answer.logprobs[0].top}
    head = load_file(TINY / "qwen3_vl" / "model.safetensors")["model.language_model.embed_tokens.weight"]
    yes, no = (head[model.prompts.tokenizer.token_to_id(word)].astype(np.float32) for word in ("yes", "no"))
    score = model.hidden_states(messages).pooled() @ (yes - no)
    assert score == pytest.approx(likely[b"yes"] - likely[b"no"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tarn-2b", {"text_config": {"mtp_num_hidden_layers": 0}}),
        ("qwen3-vl-2b", {"tie_word_embeddings": False}),
        ("qwen3-vl-2b", {"vision_config": {"deepstack_visual_indexes": [0, 1, 2, 3]}}),
    ],
    ids=["hybrid without a draft head", "another head", "deepstack in the last layer"],
)
def test_every_form_of_graph(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    from tests.helpers import ladder

    ladder.need_torch()
    source = ladder.variant(ladder.tiny(tmp_path / "tiny", name), tmp_path / "source", changes)
    pair = ladder.compile_pair(source, tmp_path / "bundle")
    messages = ladder.CONVERSATIONS["two turns"]
    assert relative_error(pair.model.hidden_states(messages).states, pair.their_hidden_states(messages)) < 5e-5


@pytest.mark.parametrize("model", ["qwen3_vl", "qwen3_5", "llava"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_answers_stay_as_they_are(bundles: Callable[..., Path], model: str, precision: str) -> None:
    """To the bit, in conversations that were open before the decoder was opened anew, too."""
    loaded, fresh = (opened(bundles(model, precision)) for _ in range(2))
    decoder, ids, places = loaded.decoder, np.arange(20, 60), text_positions(40, 0)
    states, one = decoder.open_states(), np.array([7])
    steps = [Step(ids, places, num_logits=2), Step(one, text_positions(1, 40)), Step(one, text_positions(1, 41))]
    known = fresh.decoder.open_states()
    wanted = [fresh.decoder.run(known, step).copy() for step in steps]
    found = [decoder.run(states, step).copy() for step in steps[:2]]
    asked(loaded)
    found.append(decoder.run(states, steps[2]).copy())
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    again = decoder.open_states()
    for step, theirs in zip(steps, wanted, strict=True):
        np.testing.assert_array_equal(decoder.run(again, step), theirs)
    answers = [each.ask(QUESTION, PICTURES[:1]) for each in (loaded, fresh)]
    assert answers[0].read() == answers[1].read()


def test_threads_and_answers_at_once(bundles: Callable[..., Path]) -> None:
    model = opened(bundles("qwen3_vl"))
    known = [asked(opened(bundles("qwen3_vl")), picture).states for picture in PICTURES]
    words = [opened(bundles("qwen3_vl")).ask(QUESTION, [picture]).read() for picture in PICTURES]

    def work(index: int) -> bool:
        picture = index % len(PICTURES)
        if index % 2:
            return model.ask(QUESTION, [PICTURES[picture]]).read() == words[picture]
        return np.array_equal(asked(model, PICTURES[picture]).states, known[picture])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))


def test_what_is_asked_counts(bundles: Callable[..., Path]) -> None:
    model = opened(bundles("qwen3_vl"))
    text = model.hidden_states("A photo of a lion.")
    np.testing.assert_array_equal(text.states, model.hidden_states([user_message("A photo of a lion.")]).states)
    whole = model.hidden_states("A photo of a lion.", add_generation_prompt=False)
    assert len(whole.ids) < len(text.ids)
    np.testing.assert_array_equal(whole.ids, text.ids[: len(whole.ids)])
    assert relative_error(text.states[: len(whole.ids)], whole.states) < 1e-5  # each knows only what is before it
    assert len(asked(model, max_pixels=2048).ids) < len(asked(model).ids)
    assert text.states.dtype == text.pooled().dtype == np.float32
    np.testing.assert_array_equal(text.pooled(), text.states[-1])
    assert np.linalg.norm(text.pooled(normalize=True)) == pytest.approx(1, abs=1e-6)
    assert not HiddenStates(text.ids, np.zeros_like(text.states)).pooled(normalize=True).any()


def test_what_cannot_be_is_refused(bundles: Callable[..., Path]) -> None:
    model = opened(bundles("qwen3_vl"), context=64)
    with pytest.raises(ContextFull, match="64"):
        model.hidden_states("word " * 100)
    with pytest.raises(InputError, match="add_vision_id"):
        model.hidden_states("word", add_vision_ids=True)
    with pytest.raises(InputError, match="max_new_tokens"):
        model.hidden_states("word", max_new_tokens=3)


def test_a_graph_without_a_norm_shows_none(bundles: Callable[..., Path], tmp_path: Path) -> None:
    bundle = bundles("qwen3_vl")
    graph = parse_model((bundle / "decoder.onnx").read_bytes())
    for node in graph.graph.node:
        node.op_type = node.op_type.replace(b"Normalization", b"Normalisation")
    (tmp_path / "decoder.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(InputError, match="shows no hidden states in front of its logits; export it again"):
        add_hidden_states(editable(tmp_path / "decoder.onnx"), tmp_path / "decoder.onnx")


def test_a_snapshot_of_the_hub(bundles: Callable[..., Path], tmp_path: Path) -> None:
    """Its files are links to blobs with other names."""
    bundle, snapshot = bundles("qwen3_vl"), tmp_path / "models--maker--name" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--maker--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, file in enumerate(sorted(bundle.iterdir())):
        shutil.copy(file, blobs / str(index))
        (snapshot / file.name).symlink_to(Path("../..") / "blobs" / str(index))
    np.testing.assert_array_equal(asked(opened(snapshot)).states, asked(opened(bundle)).states)


def test_the_command(bundles: Callable[..., Path], cli: Callable[..., Ran], tmp_path: Path) -> None:
    bundle, out = bundles("qwen3_vl"), tmp_path / "vectors.npz"
    ran = cli("embed", bundle, QUESTION, "--image", PICTURES[0], "--system", "Be brief.", "--normalize", "-o", out,
              "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    messages = [{"role": "system", "content": "Be brief."}, user_message(QUESTION, [PICTURES[0]])]
    expected = opened(bundle).hidden_states(messages)
    with np.load(out) as written:
        np.testing.assert_array_equal(written["ids"], expected.ids)
        np.testing.assert_array_equal(written["hidden_states"], expected.states)
        np.testing.assert_array_equal(written["pooled"], expected.pooled(normalize=True))
    assert json.loads(ran.out) == {"out": str(out), "tokens": len(expected.ids), "hidden": 128}
    assert cli("embed", bundle, "--image", PICTURES[0], "-o", out).code == 0  # an image alone
    for wrong in (["-o", out], [QUESTION, "--max-pixels", "4000", "-o", out], [QUESTION, "--fps", "2", "-o", out]):
        ran = cli("embed", bundle, *wrong)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
