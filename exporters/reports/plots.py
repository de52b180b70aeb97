"""The plots of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

from .records import (
    HISTOGRAM_EDGES,
    Repeated,
    Report,
)
from .svg import (
    COLOURS,
    HALF,
    INK,
    is_narrow,
    legend,
    power,
)
from .svg import draw as draw_all
from .units import megabytes, milliseconds

BAR, HEAD = 0.36, 0.75  # inches of height for a bar, and for all that is around them
PHASES = (("image", "image processing"), ("vision", "vision encoder"), ("prefill", "prefill"))
KL_TICKS = range(-8, 2, 2)  # powers of ten
MOST_SIGNS = 28  # of a name beside a plot of half a page
LABEL_GAP = 0.01  # of the axis, between a bar and its label

Plot = Callable[[Any, Report], None]


def draw(report: Report) -> dict[str, str]:
    """The plots by the name of their section. Raises MissingExtra without matplotlib."""
    return draw_all(PLOTS, report)


def colour_of(report: Report, name: str) -> str:
    """The colour of a contender: one for the bundle, shades for the others."""
    order = [contender.name for contender in report.contenders]
    return COLOURS[("ours", "rival", "other")[min(order.index(name), 2)]]


def _sizes(figure: Any, report: Report) -> None:
    axes = _bars(figure, ["checkpoint", f"bundle ({report.precision})"])
    totals = (report.source_bytes, report.bundle_bytes)
    left = [0.0, 0.0]
    for index, part in enumerate(report.components):
        values = [part.source_bytes / 1e6, part.bundle_bytes / 1e6]
        axes.barh([0, 1], values, left=left, color=COLOURS[f"k{index}"], label=part.name, height=0.62)
        left = [start + value for start, value in zip(left, values, strict=True)]
    for row, (end, total) in enumerate(zip(left, totals, strict=True)):
        _label(axes, end, row, megabytes(total), max(left))
    axes.set_xlabel("MB")
    _legend(figure, axes, columns=4)


def _first_token(figure: Any, report: Report) -> None:
    axes = _bars(figure, [contender.name for contender in report.contenders])
    rows, left = range(len(report.contenders)), [0.0] * len(report.contenders)
    for phase, label in PHASES:
        values = [getattr(contender, f"{phase}_ms").median for contender in report.contenders]
        axes.barh(rows, values, left=left, color=COLOURS[phase], label=label, height=0.62)
        left = [start + value for start, value in zip(left, values, strict=True)]
    for row, end in zip(rows, left, strict=True):
        _label(axes, end, row, milliseconds(end), max(left))
    axes.set_xlabel("ms")
    _legend(figure, axes, columns=3)


def _decode(figure: Any, report: Report) -> None:
    spreads = [contender.decode_tokens_per_s for contender in report.contenders]
    axes = _contender_bars(figure, report, [spread.median for spread in spreads], spreads)
    axes.set_xlabel("tokens/s, all repeats as lines")


def _memory(figure: Any, report: Report) -> None:
    values = [contender.peak_memory_bytes for contender in report.contenders]
    axes = _contender_bars(figure, report, [value / 1e6 for value in values])
    axes.set_xlabel("MB")


def _contender_bars(
    figure: Any, report: Report, values: Sequence[float], spreads: Sequence[Repeated] | None = None
) -> Any:
    figure.set_figwidth(HALF)
    axes = _bars(figure, [contender.name for contender in report.contenders], head=0.5)
    colours = [colour_of(report, contender.name) for contender in report.contenders]
    axes.barh(range(len(values)), values, color=colours, height=0.62)
    ends = list(values)
    if spreads is not None:
        ends = [spread.high for spread in spreads]
        axes.hlines(range(len(values)), [s.low for s in spreads], ends, color=INK, linewidth=1)
    for row, (end, value) in enumerate(zip(ends, values, strict=True)):
        _label(axes, end, row, f"{value:.0f}" if value >= 100 else f"{value:.1f}", max(ends), room=0.25)
    return axes


def _tasks(figure: Any, report: Report) -> None:
    if report.total is None:
        return
    scores = [report.total, *report.tasks]
    figure.set_figheight(3.3 if is_narrow(figure) else 2.7)
    axes = figure.subplots()
    sides = (("bundle", report.bundle.name, -0.19), ("reference", report.reference, 0.19))
    for side, name, shift in sides:
        places = [index + shift for index in range(len(scores))]
        shares = [100 * float(getattr(score, f"{side}_accuracy")) for score in scores]
        axes.bar(places, shares, width=0.36, color=colour_of(report, name), label=name)
        # How far the intervals reach below and above, in per cent.
        below, above = [], []
        for score in scores:
            share, (low, high) = getattr(score, f"{side}_accuracy"), getattr(score, f"{side}_interval")
            below.append(max(0.0, 100 * (share - low)))
            above.append(max(0.0, 100 * (high - share)))
        axes.errorbar(places, shares, yerr=[below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.set_xticks(
        range(len(scores)), [_short(score.task) for score in scores], rotation=90 if is_narrow(figure) else 0
    )
    axes.set_ylim(0, 104)
    axes.set_ylabel("right answers, %")
    axes.grid(axis="y")
    _legend(figure, axes, columns=2)


def _kl(figure: Any, report: Report) -> None:
    """Share of positions by KL; the bundle filled, other dtypes of PyTorch as outlines."""
    places = [w for w in ("answers", "prompts") if any(row.where == w for row in report.agreement)]
    if not places:
        return
    figure.set_figheight(2.5)
    for axes, where in zip(figure.subplots(1, len(places), sharey=True, squeeze=False)[0], places, strict=True):
        rows = [row for row in report.agreement if row.where == where]
        for row in sorted(rows, key=lambda row: row.contender != report.bundle.name):
            shares = [100 * count / row.positions for count in row.histogram]
            ours = row.contender == report.bundle.name
            colour = colour_of(report, row.contender)
            axes.stairs(shares, HISTOGRAM_EDGES, fill=ours, color=colour, linewidth=1.6, label=row.contender)
        axes.set_xscale("log")
        ticks = KL_TICKS[:: 2 if is_narrow(figure) else 1]
        axes.set_xticks([10.0**exponent for exponent in ticks], [power(exponent) for exponent in ticks])
        axes.minorticks_off()
        title = {"answers": "tokens of the answers", "prompts": "text of prompts with images"}[where]
        axes.set_title(fill(title, 18) if is_narrow(figure) else title)
        axes.set_xlabel("KL divergence, nats")
        axes.grid(axis="y")
    figure.axes[0].set_ylabel("positions, %")
    _legend(figure, figure.axes[0], columns=3)


def _short(name: str) -> str:
    """As much of a name as stands beside a plot of half a page; its table has the whole."""
    return name if len(name) <= MOST_SIGNS else f"{name[: MOST_SIGNS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _bars(figure: Any, names: Sequence[str], head: float = HEAD) -> Any:
    figure.set_figheight(head + BAR * len(names))
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [_short(name) for name in names] if is_narrow(figure) else names)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.margins(x=0)
    return axes


def _label(axes: Any, end: float, row: int, text: str, longest: float, room: float = 0.14) -> None:
    """Write behind the end of a bar, with room for it."""
    axes.set_xlim(0, longest * (1 + room))
    axes.text(end + longest * LABEL_GAP, row, text, va="center", ha="left")


def _legend(figure: Any, axes: Any, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend(figure, dict(zip(labels, handles, strict=True)), columns=columns)


PLOTS: Mapping[str, Plot] = {
    "sizes": _sizes, "first_token": _first_token, "decode": _decode, "memory": _memory, "tasks": _tasks, "kl": _kl,
}  # fmt: skip
