"""From measurements to figures of a report: speeds, divergences, perplexities and scores, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from lensmith.exporters.comparing import contender
from lensmith.exporters.comparing import tensor_outcomes as outcomes
from lensmith.exporters.comparing.cases import Case
from lensmith.exporters.comparing.comparison import CompareOptions
from lensmith.exporters.comparing.contender import (
    Assignment,
    _compare_with_trace,
    _distributions,
    _times,
    _write_trace,
)
from lensmith.exporters.comparing.runners import Runner
from lensmith.exporters.comparing.tensor_outcomes import (
    _agreement,
    _contender,
    _notes,
    _perplexity,
    _scores,
    _workload,
)
from lensmith.exporters.reports.records import HISTOGRAM_EDGES, TaskScore
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.prompt.prompt_parts import Prompt
from lensmith.runtimes.prompt.requests import Request
from lensmith.targets.errors import InputError
from PIL import Image


def job(name: str = "lensmith int4", **values: Any) -> Assignment:
    chosen: dict[str, Any] = {"dtype": None, "threads": 2, "repeats": 3, "image": "", "decode_steps": 5, "cases": (),
                              "traced": (), "traces": "", "is_reference": False, "answers": False}  # fmt: skip
    return Assignment(name, bundle="b", checkpoint="c", prompt="What?", **{**chosen, **values})


def timing(**values: float) -> dict[str, float]:
    return {"image_ms": 1, "vision_ms": 2, "prefill_ms": 3, "decode_ms": 100, "new_tokens": 6, "prompt_tokens": 40,
            "image_tokens": 16, **values}  # fmt: skip


def test_speed_counts_the_tokens_behind_the_first() -> None:
    """The first token comes with the prompt: 5 more in 100 ms are 50 a second."""
    rows = [timing(), timing(decode_ms=50, prefill_ms=5), timing(decode_ms=200, prefill_ms=4)]
    made = _contender(job(), {"timings": rows, "engine": "e", "load_ms": 7.0, "peak_memory_bytes": 9})
    assert made.decode_tokens_per_s.median == pytest.approx(50)
    assert (made.prefill_ms.median, made.image_ms.median, made.vision_ms.median) == (4, 1, 2)
    assert (made.load_ms, made.peak_memory_bytes, made.is_bundle) == (7.0, 9, True)


def test_workload_is_the_timed_image(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    made = _workload(job(image=str(tmp_path / "a.png")), {"timings": [timing()]})
    assert (made.width, made.height, made.prompt_tokens, made.image_tokens) == (64, 32, 40, 16)
    blind = _workload(job(), {"timings": [timing(image_tokens=0)]})
    assert (blind.image, blind.width, blind.height) == ("no image", 0, 0)


def distributions(*kl: float, top1: tuple[bool, ...] = (True,), prompts: tuple[float, ...] = ()) -> dict[str, Any]:
    return {"distributions": [{"answers": {"kl": list(kl), "top1": list(top1)}, "losses": [],
                               "prompts": {"kl": list(prompts), "top1": [True] * len(prompts)}}]}  # fmt: skip


def test_agreement_of_every_side_with_the_reference() -> None:
    largest = HISTOGRAM_EDGES[-1]
    kl = (0.0, *[0.25] * 98, 10 * largest)
    jobs = [job("PyTorch float32"), job("PyTorch bfloat16"), job()]
    results = [{}, distributions(0.5), distributions(*kl, top1=(True, True, True, False), prompts=(1.0, 3.0))]
    other, answers, prompts = _agreement(jobs, results)
    assert (other.contender, other.where, other.kl_mean) == ("PyTorch bfloat16", "answers", 0.5)
    assert (answers.contender, answers.where, answers.positions, answers.top1) == (
        "lensmith int4",
        "answers",
        100,
        0.75,
    )
    assert answers.kl_mean == pytest.approx((98 * 0.25 + 10 * largest) / 100)
    assert (answers.kl_median, answers.kl_max) == (0.25, 10 * largest)
    assert answers.kl_p99 == pytest.approx(0.25 + 0.01 * (10 * largest - 0.25))  # of 100 values: between the last two
    assert sum(answers.histogram) == 100
    assert answers.histogram[-1] >= 1
    assert (prompts.where, prompts.positions, prompts.kl_mean) == ("prompts", 2, 2.0)


def test_perplexity_is_of_the_mean_loss() -> None:
    rows = [{"losses": [np.log(2), np.log(8)]}, {"losses": [np.log(4)]}]
    assert _perplexity({"distributions": rows}) == pytest.approx(4)
    assert _perplexity({"distributions": [{"losses": [1e9]}]}) < float("inf")


def test_scores_by_task_and_by_who_was_right() -> None:
    cases = [Case(task, (), "?", "lion") for task in ("a", "a", "a", "a", "b")]
    made = list(_scores(cases, ["lion", "lion", " lion\n", "crow", "x"], ["lion", "lions", "crow", "lion", "lion"]))
    assert [(s.task, s.samples, s.both, s.only_reference, s.only_bundle) for s in made] == [
        ("a", 4, 1, 2, 1), ("b", 1, 0, 0, 1)]  # fmt: skip
    assert not list(_scores(cases, [], []))


def test_degrees_are_averaged_by_task() -> None:
    """ANLS of 1, 0.75 and 0 against 1, 0 and 0; a half counts as right."""
    cases = [Case("doc", (), "?", "abcd", metric="ANLS", answers=("abcd",)) for _ in range(3)]
    cases.append(Case("chart", (), "?", "100", metric="relaxed accuracy"))
    doc, chart = _scores(cases, ["abcd", "abcx", "x", "99"], ["abcd", "x", "x", "101"])
    assert (doc.metric, doc.samples, doc.both, doc.only_reference, doc.only_bundle) == ("ANLS", 3, 1, 1, 0)
    assert (doc.reference_accuracy, doc.bundle_accuracy) == pytest.approx((1.75 / 3, 1 / 3))
    assert (chart.metric, chart.graded, chart.both) == ("relaxed accuracy", None, 1)
    both = doc + chart
    assert (both.metric, both.samples, both.both) == ("mean of the metrics", 4, 2)
    assert (both.reference_accuracy, both.bundle_accuracy) == pytest.approx((2.75 / 4, 2 / 4))


def test_intervals_of_degrees_are_those_of_paired_means() -> None:
    pairs = [(1.0, 0.75), (0.5, 0.5), (0.0, 0.25), (1.0, 0.0)]
    made = TaskScore.of("doc", "ANLS", pairs)
    differences = np.array([second - first for first, second in pairs])
    half = 1.959964 * differences.std(ddof=1) / 2
    assert made.difference == pytest.approx((differences.mean(), differences.mean() - half, differences.mean() + half))
    own = np.array([second for _, second in pairs])
    margin = 1.959964 * own.std(ddof=1) / 2
    assert made.bundle_interval == pytest.approx((own.mean() - margin, own.mean() + margin))
    assert made.reference_interval[1] == 1.0  # no degree is above
    assert TaskScore.of("doc", "ANLS", [(0.5, 0.75)]).difference[1:] == (-1, 1)


@pytest.mark.parametrize(("load", "told"), [(3.0, False), (3.1, True)])
def test_other_programs_are_told(load: float, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of two cores busy beside the two threads of the comparison itself."""
    monkeypatch.setattr(outcomes, "load_average", lambda: load)
    monkeypatch.setattr(outcomes, "available_cores", lambda: 2)
    assert any(f"load average {load}" in note for note in _notes([job()])) == told


@pytest.mark.parametrize(
    ("dtypes", "reference"),
    [(("bfloat16",), "bfloat16"), (("bfloat16", "float32"), "float32"), (("float32", "bfloat16"), "float32")],
)
def test_float32_is_the_reference_where_it_is_there(dtypes: tuple[str, ...], reference: str) -> None:
    assert CompareOptions(dtypes=dtypes).reference == reference


class Side:
    """A model of three words, each text position of which expects the next word of `words`."""

    eos_token_ids = (2,)

    def __init__(self, words: list[int], sharpness: float = 2.0) -> None:
        self.words, self.sharpness = np.array(words), sharpness
        self.asked: list[list[int]] = []
        self.times = 0

    class tokenizer:
        @staticmethod
        def encode(text: str, add_special_tokens: bool) -> Any:
            return type("Encoding", (), {"ids": [int(sign) for sign in text]})

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        self.times += 1
        return Timings(prefill_ms=self.times)

    def prepare(self, case: Case) -> Request:
        """Two tokens of text, two of an image, one of text."""
        spans = np.array([[2, 4]], np.int64)
        prompt = Prompt(np.array([0, 1, 1, 1, 0]), spans, np.array([[1, 2, 1]]), np.zeros(1, np.bool_))
        return Request(prompt, np.tile(np.arange(5), (3, 1)), 5, (cast(Any, object()),))

    def greedy(self, request: Request, tokens: int) -> list[int]:
        return []

    def logits(self, request: Request, positions: Any) -> Any:
        self.asked.append([int(place) for place in positions])
        expected = np.append(request.prompt.ids[1:], 0)[positions] if self.words.size == 0 else self.words[positions]
        return (np.eye(3, dtype=np.float32) * np.float32(self.sharpness))[expected]


def test_the_first_run_is_for_warming_up() -> None:
    side = Side([])
    assert [timings.prefill_ms for timings in _times(job(repeats=3), cast(Runner, side))] == [2, 3, 4]


def test_what_distributions_are_compared_at(tmp_path: Path) -> None:
    """The positions of text that predict something known: a prompt of 5, its answer of 2 and the end token.

    Positions 2 and 3 are of the image, 7 is the last token, behind which nothing is known. The answer's tokens are
    predicted by 4, 5 and 6; of the prompt 0, 1 and 4 count.
    """
    case, theirs = Case("t", (), "?", "01"), Side([])
    row = _write_trace(tmp_path / "0.npz", case, cast(Runner, theirs), theirs.prepare(case))
    assert theirs.asked == [[0, 1, 4, 5, 6]]
    assert row["losses"] == pytest.approx([np.log(1 + 2 * np.exp(-2))] * 3)  # each expects the right word
    with np.load(tmp_path / "0.npz") as trace:
        assert trace["answer"].tolist() == [0, 1, 2]
    ours = Side([2, 1, 0, 0, 0, 1, 1, 0])  # wrong at the first position of text, and about the end
    found = _compare_with_trace(tmp_path / "0.npz", cast(Runner, ours), ours.prepare(case))
    wrong = 2 * (np.exp(2) - 1) / (np.exp(2) + 2)  # KL of two such rows that expect different words
    assert found["answers"]["kl"] == pytest.approx([0, 0, wrong], abs=1e-6)
    assert found["answers"]["top1"] == [True, True, False]
    assert found["prompts"]["kl"] == pytest.approx([wrong, 0, 0], abs=1e-6)
    assert found["prompts"]["top1"] == [False, True, True]
    assert found["losses"][2] == pytest.approx(np.log(np.exp(2) + 2))


def test_vocabularies_of_other_sizes_are_refused(tmp_path: Path) -> None:
    case, side = Case("t", (), "?", "01"), Side([])
    request = side.prepare(case)
    np.savez(tmp_path / "0.npz", prompt=request.prompt.ids, answer=np.array([0, 1, 2]),
             log_probabilities=np.zeros((5, 4), np.float32))  # fmt: skip
    with pytest.raises(InputError, match="a vocabulary of 3, the checkpoint of 4"):
        _compare_with_trace(tmp_path / "0.npz", cast(Runner, side), request)


def test_an_answer_that_is_not_known_is_the_references_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing said at all is the end token alone."""
    monkeypatch.setattr(contender, "_progress", lambda *_: None)
    side, cases = Side([]), (Case("t", (), "?"),)
    rows = _distributions(job(cases=cases, traced=(0,), traces=str(tmp_path), is_reference=True), cast(Runner, side))
    with np.load(tmp_path / "0.npz") as trace:
        assert trace["answer"].tolist() == [2]
    assert len(rows[0]["losses"]) == 1
