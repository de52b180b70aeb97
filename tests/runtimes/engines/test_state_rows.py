"""Recurrent states that go back within a step: the bits of those that never went further."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.engines.onnx.bound_states import BoundStates
from lensmith.runtimes.engines.onnx.editable_graph import editable
from lensmith.runtimes.engines.onnx.onnx_decoder import OnnxDecoder
from lensmith.runtimes.engines.onnx.state_rows import MOST_ROWS, add_state_rows
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.targets.errors import InputError

Opened = Callable[[str], OnnxDecoder]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("hybrid")
    source = synth("tarn-2b", folder / "source", tiny=True)
    paths = {
        precision: export(prepare(source, Options(precision=precision)), folder / precision, golden="never").path
        for precision in ("int4", "fp32")
    }
    return lambda precision: OnnxDecoder(paths[precision] / "decoder.onnx", capacity=256, threads=1)


def append(decoder: OnnxDecoder, states: BoundStates, ids: list[int], undoable: int = 0) -> Any:
    positions = text_positions(len(ids), states.length)
    step = Step(np.array(ids, np.int64), positions, num_logits=len(ids), undoable=undoable)
    return decoder.run(states, step).copy()


tokens = st.lists(st.integers(3, 200), min_size=1, max_size=MOST_ROWS)


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_what_was_forgotten_leaves_no_trace(decoders: Opened, precision: str) -> None:
    """Logits and states of any steps that were partly forgotten, and those of single tokens."""
    decoder = decoders(precision)

    @settings(max_examples=25, deadline=None)
    @given(steps=st.lists(st.tuples(tokens, st.integers(0, MOST_ROWS - 1), st.booleans()), min_size=1, max_size=6))
    def check(steps: list[tuple[list[int], int, bool]]) -> None:
        states, plain = decoder.open_states(), decoder.open_states()
        for ids, wrong, saved in steps:
            wrong = min(wrong, len(ids) - 1)
            begin = states.length
            logits = append(decoder, states, ids, undoable=len(ids) - 1)
            assert states.rewind(begin + len(ids) - wrong) == begin + len(ids) - wrong
            expected = [append(decoder, plain, [token])[0] for token in ids[: len(ids) - wrong]]
            assert np.abs(logits[: len(expected)] - expected).max() <= (1e-4 if precision == "fp32" else 0)
            if saved:
                states.save()
            for name, state in plain.copies().items():
                assert np.abs(states.copies()[name] - state).max() <= (1e-5 if precision == "fp32" else 0), name
        assert states.length == plain.length

    check()


def test_only_the_tokens_that_may_be_forgotten_are(decoders: Opened) -> None:
    decoder = decoders("int4")
    states = decoder.open_states()
    append(decoder, states, [5, 6])
    states.save()
    append(decoder, states, [7, 8, 9, 10], undoable=2)
    assert [states.reach(wanted) for wanted in (6, 5, 4, 3, 2, 1)] == [6, 5, 4, 2, 2, 0]
    assert states.rewind(5) == 5
    assert [states.reach(wanted) for wanted in (5, 4, 2)] == [5, 2, 2]
    append(decoder, states, [11])
    assert states.reach(5) == 2
    assert states.rewind(4) == 2
    plain = decoder.open_states()
    append(decoder, plain, [5, 6])
    assert all(np.array_equal(states.copies()[name], state) for name, state in plain.copies().items())


def test_more_tokens_than_rows_are_refused(decoders: Opened) -> None:
    decoder = decoders("int4")
    states = decoder.open_states()
    with pytest.raises(InputError, match=r"9 tokens, some to be forgotten, .* go back within 8 at most; append fewer"):
        append(decoder, states, [1] * 9, undoable=8)
    assert states.length == 0
    append(decoder, states, [1] * 8, undoable=7)


def test_a_graph_of_another_form_keeps_no_rows(decoders: Opened, tmp_path: Path) -> None:
    model = editable(decoders("int4").path)
    for node in model.graph.node:
        node.op_type = node.op_type.replace(b"MatMul", b"Product")
    before = model.SerializeToString()
    assert add_state_rows(model) is None
    assert model.SerializeToString() == before


def test_rows_are_few(decoders: Opened) -> None:
    """What a step keeps is far less than the states, and prompts keep no more of it than short steps."""
    decoder = decoders("int4")
    states = decoder.open_states()
    append(decoder, states, [1] * 8, undoable=7)
    assert {part.shape[:2] for part in states._rows} == {(1, 8)}
    outputs = [port for port in decoder.session.get_outputs() if port.name.startswith("rows.")]
    made = decoder.session.run([port.name for port in outputs], _feed(decoder, 100))
    assert {part.shape[1] for part in made} == {MOST_ROWS}


def _feed(decoder: OnnxDecoder, count: int) -> dict[str, Any]:
    arrays = decoder._arrays(count, 1, 1, None)
    states = decoder.open_states()
    return {**arrays, **states._caches.arrays, **states._recurrent.arrays}


def test_rows_are_cut_where_they_are_made(decoders: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer: a prompt would hold what all layers made until its end."""
    monkeypatch.chdir(tmp_path)
    decoder = OnnxDecoder(decoders("int4").path, capacity=64, threads=1, profile=True)
    append(decoder, decoder.open_states(), [1] * 20)
    events = json.loads(Path(decoder.session.end_profiling()).read_text())
    kernels = [(event["name"], event["args"]["op_name"]) for event in events if event.get("cat") == "Node"]
    recurrent = [at for at, (_, kind) in enumerate(kernels) if kind == "LinearAttention"]
    cuts = [next(at for at, (name, _) in enumerate(kernels) if name.startswith(f"rows.{index}_")) for index in range(9)]
    assert [sum(cut < each for cut in cuts) >= 3 * layer for layer, each in enumerate(recurrent)] == [True] * 3
