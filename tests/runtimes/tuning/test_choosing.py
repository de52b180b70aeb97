"""What is chosen: quicker than the usual by more than the noise, with the same answer; and how bundles are tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.runtimes import InputError
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.runtimes.tuning import bench, choosing, tunables
from lensmith.runtimes.tuning.bench import Run
from lensmith.runtimes.tuning.choosing import LEAST_GAIN, Trial, best_trial, tune
from lensmith.runtimes.tuning.rehearsals import nothing
from lensmith.runtimes.tuning.tuning import Tuning

TIMES = st.lists(st.floats(0.5, 2.0), min_size=3, max_size=6)


def trial(value: int, times: list[float], *, usual: bool = False, same: bool = True) -> Trial:
    return Trial("threads", value, usual, tuple(Run(9.0, time) for time in times), same)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([[1.0, 1.0, 1.0]], 0),  # no quicker
        ([[0.9, 0.9, 0.9]], 1),
        ([[0.9, 0.9, 1.0]], 0),  # once as slow as the usual
        ([[0.98, 0.98, 0.98]], 0),  # less than is worth a change
        ([[0.9, 0.9, 0.9], [0.8, 0.8, 0.8]], 2),
        ([[0.8, 0.8, 1.1], [0.9, 0.9, 0.9]], 2),  # quicker in the middle, but within the noise
    ],
)
def test_what_is_chosen(others: list[list[float]], chosen: int) -> None:
    tried = [trial(0, [1.0, 1.0, 1.2], usual=True), *(trial(n, times) for n, times in enumerate(others, 1))]
    assert best_trial("token_s", tried).value == chosen
    assert best_trial("first_token_s", tried).value == 0


def test_another_answer_is_never_chosen() -> None:
    tried = [trial(0, [1.0] * 3, usual=True), trial(1, [0.1] * 3, same=False), trial(2, [0.5] * 3)]
    assert best_trial("token_s", tried).value == 2


@given(usual=TIMES, others=st.lists(TIMES, max_size=4))
def test_what_is_chosen_is_no_slower(usual: list[float], others: list[list[float]]) -> None:
    tried = [trial(0, usual, usual=True), *(trial(n, times) for n, times in enumerate(others, 1))]
    best = best_trial("token_s", tried)
    if not best.usual:
        assert max(best.figures("token_s")) < min(usual)
        assert best.median("token_s") <= (1 - LEAST_GAIN) * tried[0].median("token_s")
    clear = [times for times in others if max(times) < 0.9 * min(usual)]
    assert best.usual <= (not clear)


class Timed:
    """Runs of a bench, by a rule instead of a clock; its model is opened once."""

    def __init__(self, seconds: Callable[[Tuning, int], tuple[float, float]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, begin = list[Tuning](), bench.Bench.open

        def run(_: Any, tuning: Tuning, messages: Any, guesses: Any, answer: Any, most: int) -> Run:
            self.asked.append(tuning)
            return Run(*seconds(tuning, 0 if guesses is nothing else most), ids=(1, 2))

        def once(self: bench.Bench, tuning: Tuning) -> bool:
            return self._opened is None and begin(self, tuning)

        monkeypatch.setattr(bench.Bench, "run", run)
        monkeypatch.setattr(bench.Bench, "open", once)


def found_of(path: Path, **chosen: Any) -> choosing.Findings:
    return tune(open_bundle(path), **{"size": (64, 64), "tokens": 6, "repeats": 3, **chosen})


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CONTEXT", 192)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunables, "usable_cores", lambda: 4)
    monkeypatch.setattr(tunables.os, "cpu_count", lambda: 4)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("four_cores")
def test_each_setting_by_its_own_figure(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts want three threads, tokens one, prompts pieces of 320, and the text one draft a step."""

    def seconds(tuning: Tuning, most: int) -> tuple[float, float]:
        few = tuning.decode_threads or 4
        return abs(3 - (tuning.threads or 4)) + (tuning.chunk != 320) + 1.0, few + abs(1 - most) + 1.0

    path = made("qwen3-vl-2b")
    timed = Timed(seconds, monkeypatch)
    found = found_of(path)
    if not bench.Bench(open_bundle(path), device=None, size=None, tokens=6).splits_threads:
        pytest.skip("without lensmith's kernels threads are those of prompts and tokens alike")
    assert found.tuning == Tuning(threads=3, decode_threads=1, chunk=320, ngram_drafts=1)
    assert found.left_out == {"head_drafts": "the bundle has no draft head"}
    values = {name: [each.value for each in found.trials if each.setting == name] for name in ("threads", "chunk")}
    assert values == {"threads": [4, 1, 2, 3], "chunk": [640, 320, 160]}
    assert {each.value: each.chosen for each in found.trials if each.setting == "threads"} == {
        4: (), 1: ("decode_threads",), 2: (), 3: ("threads",)
    }  # fmt: skip
    assert timed.asked[-1] == Tuning(threads=3, decode_threads=1, chunk=320, ngram_drafts=4)  # the others hold on


@pytest.mark.usefixtures("four_cores")
def test_a_draft_head(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Timed(lambda _, most: (1.0, 1.0 + most), monkeypatch)
    path = made("tarn-2b")
    if not bench.Bench(open_bundle(path), device=None, size=None, tokens=6).splits_threads:
        pytest.skip("without lensmith's kernels heads draft nothing by default")
    found = found_of(path)
    assert found.tuning == Tuning(ngram_drafts=0, head_drafts=0)
    assert found.left_out == {}


@pytest.mark.usefixtures("four_cores")
def test_what_is_as_quick_stays_usual(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Timed(lambda *_: (1.0, 1.0), monkeypatch)
    found = found_of(made("qwen3-vl-2b"))
    assert found.tuning == Tuning()
    assert {each.usual for each in found.trials if each.chosen} == {True}


@pytest.mark.usefixtures("four_cores")
def test_llama_cpp_has_threads_and_pieces(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")

    def seconds(tuning: Tuning, _: int) -> tuple[float, float]:
        return abs(2 - (tuning.threads or 4)) + 1.0, abs(1 - (tuning.decode_threads or 4)) + 1.0

    Timed(seconds, monkeypatch)
    found = found_of(made("gguf"))
    assert found.tuning == Tuning(threads=2, decode_threads=1)
    assert set(found.left_out) == {"ngram_drafts", "head_drafts"}
    assert "drafts nothing unless it is told to" in found.left_out["ngram_drafts"]


@pytest.mark.usefixtures("four_cores")
def test_wide_weights_have_one_number_of_threads(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second session would hold them a second time."""
    monkeypatch.setenv("LENSMITH_NATIVE", "0")
    Timed(lambda tuning, _: (float(tuning.threads or 4), float(tuning.decode_threads or 4)), monkeypatch)
    found = found_of(made("qwen3-vl-2b"))
    assert (found.tuning.threads, found.tuning.decode_threads) == (1, 1)


@pytest.mark.usefixtures("four_cores")
def test_an_encoder_has_threads_alone(made: Callable[[str], Path]) -> None:
    found = found_of(made("arlow-vision"), size=(64, 96))
    assert {each.setting for each in found.trials} == {"threads"}
    assert found.tuning.decode_threads is None
    assert set(found.left_out) == {"chunk", "ngram_drafts", "head_drafts"}
    assert all(each.median("first_token_s") > 0 for each in found.trials)


def test_progress_reaches_its_end(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunables, "usable_cores", lambda: 1)
    monkeypatch.setattr(tunables.os, "cpu_count", lambda: 1)  # type: ignore[attr-defined]
    told = list[tuple[str, int, int]]()
    found = found_of(made("qwen3-vl-2b"), progress=lambda *at: told.append(at))
    assert found.left_out["threads"] == "there is no other value to try"
    assert [name for name, done, total in told if done == total] == ["chunk", "ngram_drafts"]
    assert all(0 <= done <= total for _, done, total in told)


def test_nothing_to_tune_on_a_gpu(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    graph = {**bundle.content["graphs"]["decoder"], "dialect": "cuda"}
    on_gpu = Bundle(bundle.path, {**bundle.content, "graphs": {"decoder": graph}})
    with pytest.raises(InputError, match="runs on a GPU, whose engine has no threads, chunks or drafts"):
        tune(on_gpu)


@pytest.mark.parametrize(
    ("usable", "logical", "values"),
    [
        (1, 1, []),
        (2, 2, [1]),
        (2, 4, [1, 2]),  # two logical cores each, or a container's quota
        (8, 8, [1, 2, 3, 4, 5, 6, 7]),
        (20, 20, [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]),
        (64, 128, [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64]),
    ],
)
def test_how_many_threads_are_tried(
    usable: int, logical: int, values: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunables, "usable_cores", lambda: usable)
    monkeypatch.setattr(tunables.os, "cpu_count", lambda: logical)  # type: ignore[attr-defined]
    row = next(each for each in tunables.TUNABLES if each.name == "threads")
    assert list(row.values(None)) == values  # type: ignore[arg-type]
