"""Rows of what was judged on held-out samples: a figure of each candidate, and what calibration changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...runtimes.bundle.calibration_evidence import (
    CALIBRATED,
    ENCODER,
    FLOAT,
    NEAREST,
    Judged,
)
from .calibration_summary import less
from .sections import Row
from .units import (
    nats,
    percent,
    points,
)

MEAN, ALL = "all kinds, each counting the same", "all positions"


ALL_TASKS = "all tasks"


NONE = "-"


SIDES = {NEAREST: "rounded to nearest", CALIBRATED: "calibrated"}


EMPHASIZED = (f"KL, {MEAN}", f"same top token, {ALL}", f"right answers, {ALL_TASKS}")


def _gain(before: float, after: float) -> str:
    return f"{points(after - before)} points"


@dataclass(frozen=True)
class Figure:
    """A figure by kind of token or by task, how the mean of all is called, and how both are written."""

    what: str
    of: Callable[[Judged], Mapping[str, float]]
    mean: Callable[[Judged], float | None]
    total: str
    show: Callable[[float], str]
    change: Callable[[float, float], str]


TOP = Figure("same top token", lambda j: j.top1, lambda j: j.same_top, ALL, percent, _gain)


FIGURES = (
    Figure("KL", lambda j: j.kl, lambda j: j.mean_kl, MEAN, nats, less),
    Figure("KL by group", lambda j: j.groups, lambda j: None, "", nats, less),
    TOP,
    Figure("right answers", lambda j: j.accuracy, lambda j: j.mean_accuracy, ALL_TASKS, percent, _gain),
)


COLUMNS = {  # of candidates; ENCODER is judged where the divergence is limited
    FLOAT: "float32", ENCODER: "vision encoder alone", **SIDES, CALIBRATED: "calibrated by {method}",
}  # fmt: skip


def judged_rows(judged: Sequence[Judged]) -> Iterator[Row]:
    for figure in FIGURES:
        for name in dict.fromkeys(name for j in judged for name in figure.of(j)):
            yield _row(f"{figure.what}, {name}", [figure.of(j).get(name) for j in judged], figure)
        if figure.total and any(map(figure.of, judged)):
            yield _row(f"{figure.what}, {figure.total}", [figure.mean(j) for j in judged], figure)
    if any(j.perplexity is not None for j in judged):
        found = (j.perplexity for j in judged)
        yield "perplexity", *(NONE if p is None else f"{p:.4f}" if p < 100 else f"{p:.5g}" for p in found), ""
    if any(j.drafts for j in judged):
        yield _row("drafts like the float model's", [None if j.drafts is None else j.drafts.top1 for j in judged], TOP)
        yield _row("drafts accepted", [None if j.drafts is None else j.drafts.accepted for j in judged], TOP)


def _row(name: str, values: Sequence[float | None], figure: Figure) -> Row:
    """A figure of each candidate, the last two of them nearest and calibrated, and what calibration changed."""
    shown = (NONE if value is None else figure.show(value) for value in values)
    return name, *shown, change_of(values[-2], values[-1], figure.change)


def change_of(nearest: float | None, calibrated: float | None, change: Callable[[float, float], str]) -> str:
    return NONE if nearest is None or calibrated is None else change(nearest, calibrated)
