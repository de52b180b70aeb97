"""Tries the settings of a bundle one after another, and chooses what is quicker than the usual by more than noise."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ...targets.errors import InputError
from ..bundle.opening import Bundle
from ..engines.run_wishes import on_gpu
from .bench import Bench, Run
from .rehearsals import nothing
from .tunables import TUNABLES, Decided, Tunable
from .tuning import Tuning

LEAST_GAIN = 0.03  # of the median, below which a machine's mood decides
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """A value of a setting, and how it did."""

    setting: str
    value: int
    usual: bool
    runs: tuple[Run, ...]
    same: bool = True  # whether the answer has the tokens of the usual value's, each time
    chosen: tuple[str, ...] = ()  # for which fields of a Tuning

    def figures(self, name: str) -> list[float]:
        """A figure of each run, in seconds."""
        return [getattr(run, name) for run in self.runs]

    def median(self, name: str) -> float:
        """The median of a figure, in seconds."""
        return statistics.median(self.figures(name))


@dataclass(frozen=True)
class Findings:
    """What `tune` found."""

    tuning: Tuning
    trials: tuple[Trial, ...]
    left_out: dict[str, str]  # why a setting was not tried


def tune(
    bundle: Bundle,
    *,
    device: str | None = None,
    size: tuple[int, int] | None = None,
    tokens: int = 32,
    repeats: int = 4,
    progress: Progress = lambda *_: None,
) -> Findings:
    """Measure on this device; `size` (width, height) is that of the image, `tokens` the length of an answer.

    Raises InputError for a bundle on a GPU, and as `load` does.
    """
    if on_gpu(bundle, device):
        raise InputError(f"the bundle {bundle.path} runs on a GPU, whose engine has no threads, chunks or drafts to "
                         "choose; there is nothing to tune")  # fmt: skip
    bench = Bench(bundle, device=device, size=size, tokens=tokens)
    tuning, trials, left_out = Tuning(), list[Trial](), dict[str, str]()
    for tunable in TUNABLES:
        lacks = tunable.lacks(bench)
        values = [] if lacks else list(tunable.values(bench))
        if not values:
            left_out[tunable.name] = lacks or "there is no other value to try"
            continue
        tried = _tried(bench, tunable, values, tuning, repeats, progress)
        tuning, chosen = _choose(tunable.decides(bench), tried, tuning)
        trials += chosen
    return Findings(tuning, tuple(trials), left_out)


def _tried(
    bench: Bench, tunable: Tunable, values: Sequence[int], tuning: Tuning, repeats: int, progress: Progress
) -> list[Trial]:
    """The usual value and the others, in rounds: what else the machine does meanwhile slows down all of them."""
    usual, question = tunable.usual(bench), tunable.question(bench)
    fields = [field for group in tunable.decides(bench).values() for field in group]
    answer = bench.run(tuning, question, nothing, (), 0).ids
    runs: dict[int, list[Run]] = {value: [] for value in (usual, *values)}
    for number in range(repeats):
        for index, value in enumerate(runs):
            progress(tunable.name, number * len(runs) + index, repeats * len(runs))
            chosen = tuning if value == usual else replace(tuning, **dict.fromkeys(fields, value))
            if bench.open(chosen):
                bench.run(chosen, question, tunable.guesses, answer, value)  # warms up
            runs[value].append(bench.run(chosen, question, tunable.guesses, answer, value))
    progress(tunable.name, repeats * len(runs), repeats * len(runs))
    return [
        Trial(tunable.name, value, value == usual, tuple(found), all(run.ids == answer for run in found))
        for value, found in runs.items()
    ]


def _choose(decides: Decided, tried: list[Trial], tuning: Tuning) -> tuple[Tuning, list[Trial]]:
    """The tuning with the best values, and the trials with what they were chosen for."""
    for figure, fields in decides.items():
        best = best_trial(figure, tried)
        if not best.usual:
            tuning = replace(tuning, **dict.fromkeys(fields, best.value))
        tried = [replace(each, chosen=(*each.chosen, *fields)) if each is best else each for each in tried]
    return tuning, tried


def best_trial(figure: str, tried: Sequence[Trial]) -> Trial:
    """The one with the lowest median among those that beat the usual beyond the noise with the same answer, or that."""
    usual = next(each for each in tried if each.usual)
    better = [each for each in tried if each.same and _beats(each.figures(figure), usual.figures(figure))]
    return min(better, key=lambda each: each.median(figure), default=usual)


def _beats(ours: Sequence[float], usual: Sequence[float]) -> bool:
    """Whether each of our times is below all the usual ones, and the median by LEAST_GAIN."""
    gain = 1 - statistics.median(ours) / statistics.median(usual)
    return max(ours) < min(usual) and gain >= LEAST_GAIN
