"""What was tuned changes how long an answer takes, and nothing in it; what a caller chooses counts over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes import Encoder, InputError, Model, load, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.engines.engine_table import Wishes
from lensmith.runtimes.engines.onnx.onnx_decoder import OnnxDecoder
from lensmith.runtimes.tuning.tuned_files import keep_tuning
from lensmith.runtimes.tuning.tuning import RANGES, USUAL, Tuning, most_drafts

from tests.paths import TINY

NUMBERS = {name: st.none() | st.integers(*limits) for name, limits in RANGES.items()}
COPY = "Copy: stone frog 12 tiger river 7 stone frog 12 tiger river 7 lamp"
QUESTIONS = (
    user_message("What word is written?", [TINY / "heldout" / "images" / "0001.png"]),
    user_message(COPY),
)
TUNED = [
    Tuning(threads=1, decode_threads=1),
    Tuning(decode_threads=1),
    Tuning(threads=3, decode_threads=2, chunk=7),
    Tuning(chunk=64, ngram_drafts=0, head_drafts=0),
    Tuning(threads=2, decode_threads=1, chunk=16, ngram_drafts=4, head_drafts=2),
]


def answers_of(path: Path, tuning: Tuning) -> list[list[int]]:
    model, found = Model(open_bundle(path), context=512, tuning=tuning), []
    for question in QUESTIONS:
        answer = model.generate([question], max_new_tokens=40)
        answer.read()
        found.append(answer.ids)
    return found


@pytest.mark.parametrize(
    ("family", "precision"),
    [("qwen3_5", "int4"), ("qwen3_5", "fp32"), ("qwen3_vl", "int4"), ("qwen3_vl gguf", "q8_0")],
)
def test_answers_are_the_same_whatever_is_tuned(
    trained: Callable[[str, str], Path], family: str, precision: str
) -> None:
    path = trained(family, precision)
    usual = answers_of(path, USUAL)
    assert all(usual)
    assert max(map(len, usual)) > 10
    for tuning in TUNED:
        assert answers_of(path, tuning) == usual, tuning


@given(**NUMBERS, wished=st.none() | st.integers(1, 9))
def test_what_is_wished_counts_over_what_was_tuned(wished: int | None, **tuned: Any) -> None:
    wishes = Tuning(**tuned).applied(Wishes(512, wished, native=False, device="cpu"))
    assert (wishes.capacity, wishes.native, wishes.device, wishes.chunk) == (512, False, "cpu", tuned["chunk"])
    few = wishes.threads if wishes.decode_threads is None else wishes.decode_threads or None
    expected = (tuned["threads"], tuned["decode_threads"]) if wished is None else (wished, wished)
    assert (wishes.threads, few) == expected


@given(name=st.sampled_from(list(RANGES)), step=st.integers(1, 100), above=st.booleans())
def test_ranges(name: str, step: int, above: bool) -> None:
    least, most = RANGES[name]
    with pytest.raises(InputError, match=rf"{name} is -?\d+; expected a whole number from {least} to {most}"):
        Tuning(**{name: most + step if above else least - step})


@pytest.mark.parametrize(
    ("tuned", "wished", "most"),
    [(None, None, 7), (None, True, 7), (0, None, 0), (0, True, 7), (2, None, 2), (2, True, 2)],
)
def test_most_drafts(tuned: int | None, wished: bool | None, most: int) -> None:
    assert most_drafts(tuned, 7, wished) == most


def test_words() -> None:
    assert USUAL.words == ""
    assert Tuning(decode_threads=1, head_drafts=0).words == "decode threads 1, head drafts 0"


def test_load_takes_what_was_tuned(tiny_bundle: Path, tunings: Path) -> None:
    keep_tuning(open_bundle(tiny_bundle), Tuning(threads=1, decode_threads=2, chunk=40))

    def threads(**chosen: Any) -> tuple[int, int, int]:
        model = load(tiny_bundle, context=64, **chosen)
        assert isinstance(model, Model)
        assert isinstance(model.decoder, OnnxDecoder)
        prompts, few = (each.get_session_options() for each in (model.decoder.session, model.decoder._few))
        with model.conversation() as conversation:
            return prompts.intra_op_num_threads, few.intra_op_num_threads, conversation.chunk

    assert threads() == (1, 2, 40)
    assert threads(threads=3) == (3, 3, 40)
    usual = open_bundle(tiny_bundle).manifest.options.prefill_chunk
    assert threads(tuned=False) == (0, 0, usual)
    assert threads(native=False) == (0, 0, usual)  # other kernels
    with pytest.raises(InputError, match="tuned is 1"):
        load(tiny_bundle, tuned=1)  # type: ignore[arg-type]


def test_load_takes_what_was_tuned_of_an_encoder(made: Callable[[str], Path], tunings: Path) -> None:
    path = made("arlow-vision")
    keep_tuning(open_bundle(path), Tuning(threads=1))
    encoder, usual = load(path), load(path, tuned=False)
    assert isinstance(encoder, Encoder)
    assert isinstance(usual, Encoder)
    assert (encoder.threads, usual.threads) == (1, None)


@pytest.mark.parametrize(("most", "wished", "longest"), [(0, None, 0), (1, None, 1), (2, True, 2), (0, True, 7)])
def test_drafts_are_as_long_as_was_tuned(
    trained: Callable[[str, str], Path], most: int, wished: bool | None, longest: int
) -> None:
    """Of a copy, which is drafted from its prompt; each step has at most one token more than drafts."""
    model = Model(open_bundle(trained("qwen3_vl", "int4")), context=512, tuning=Tuning(ngram_drafts=most))
    lengths = list[int]()
    decoder, run = model.decoder, model.decoder.run

    def noted(states: Any, step: Any) -> Any:
        lengths.append(step.undoable)
        return run(states, step)

    decoder.run = noted  # type: ignore[method-assign]
    model.generate([user_message(COPY)], max_new_tokens=40, ignore_eos=True, draft=wished).read()
    assert max(lengths) == (longest if longest < 7 else max(lengths))
    assert (max(lengths) > 0) == (longest > 0)


@settings(deadline=None)
@given(**NUMBERS)
def test_a_tuning_is_kept_whole(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, **tuned: Any) -> None:
    from lensmith.runtimes.tuning import tuned_files

    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_files, "tuned_folder", lambda: folder)
        keep_tuning(open_bundle(tiny_bundle), Tuning(**tuned))
        assert tuned_files.read_tuning(open_bundle(tiny_bundle)) == Tuning(**tuned)
