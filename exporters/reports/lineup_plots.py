"""The plots of a report of many builds, narrow enough for a phone; numbers and shapes say what colours do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .lineup_records import Entrant, Lineup, Measured
from .lineup_sections import frontier, numbered, quality
from .svg import COLOURS, HALF, INK, legend, log_axis
from .svg import draw as draw_all
from .units import megabytes, milliseconds

BAR, HEAD = 0.26, 0.7  # inches of height for a bar, and for all that is around them
PHASES = (("image_ms", "image", "image", "//"), ("vision_ms", "vision encoder", "vision", ""),
          ("prefill_ms", "prefill", "prefill", ".."))  # fmt: skip
WHOLE = ("first_token_ms", "all of it", "rival", "")
MARKS, LINES = "osD^vPX*", ("-", "--", ":", "-.")
ROOM = 0.3  # of the axis, for the label behind a bar


def draw_lineup(lineup: Lineup) -> dict[str, str]:
    """The plots by the name of their section, "" without figures. Raises MissingExtra without matplotlib."""
    return draw_all(PLOTS, lineup)


def _pareto(figure: Any, lineup: Lineup) -> None:
    shown = [each for each in lineup.entrants if quality(each) is not None]
    if not shown:
        return
    figure.set_size_inches(HALF, 2.8)
    axes, numbers = figure.subplots(), numbered(lineup)
    best = frontier(shown)
    axes.plot([each.size_bytes / 1e6 for each in best], [quality(each) for each in best], color=INK, linewidth=1)
    for each in shown:
        frame = {"boxstyle": "circle,pad=0.25" if each.is_bundle else "square,pad=0.25", "facecolor": _colour(each),
                 "edgecolor": INK, "linewidth": 0.8}  # fmt: skip
        axes.text(each.size_bytes / 1e6, quality(each), str(numbers[each.name]), ha="center", va="center", bbox=frame)
    sizes, values = [each.size_bytes / 1e6 for each in shown], [quality(each) or 0.0 for each in shown]
    log_axis(axes.xaxis, min(sizes), max(sizes))
    spread = max(max(values) - min(values), 5.0)
    axes.set_ylim(min(values) - 0.2 * spread, max(values) + 0.2 * spread)
    axes.set_yticks([tick for tick in axes.get_yticks() if max(0, axes.get_ylim()[0]) <= tick <= 100])
    axes.set_xlabel("MB")
    axes.set_ylabel("%")
    axes.grid()


def _first_token(figure: Any, lineup: Lineup) -> None:
    rows = [(each, each.measured) for each in lineup.entrants if each.measured is not None]
    if not rows:
        return
    axes = _bars(figure, lineup, [each for each, _ in rows], HEAD, figure.get_figwidth())
    left = [0.0] * len(rows)
    handles = {}
    parts = [*PHASES, WHOLE] if any(not made.in_parts for _, made in rows) else PHASES
    for name, label, colour, hatch in parts:
        values = [_spent(made, name) for _, made in rows]
        bars = axes.barh(range(len(rows)), values, left=left, color=COLOURS[colour], hatch=hatch, edgecolor=INK,
                         linewidth=0.4, height=0.66)  # fmt: skip
        handles[label] = bars
        left = [start + value for start, value in zip(left, values, strict=True)]
    _labels(axes, left, [milliseconds(end) for end in left])
    axes.set_xlabel("ms")
    legend(figure, handles, columns=4)


def _spent(made: Measured, part: str) -> float:
    """Milliseconds of a part, or of the whole where parts are not told; 0 of the other."""
    if part == WHOLE[0]:
        return 0.0 if made.in_parts else made.first_token_ms
    return float(getattr(made, part).median) if made.in_parts else 0.0


def _decode(figure: Any, lineup: Lineup) -> None:
    rows = [(each, each.measured.decode_tokens_per_s) for each in lineup.entrants
            if each.measured is not None and each.measured.decode_tokens_per_s is not None]  # fmt: skip
    if not rows:
        return
    axes = _bars(figure, lineup, [each for each, _ in rows])
    places = range(len(rows))
    axes.barh(places, [speed.median for _, speed in rows], color=[_colour(each) for each, _ in rows], height=0.66)
    axes.hlines(places, [speed.low for _, speed in rows], [speed.high for _, speed in rows], color=INK, linewidth=1)
    _labels(axes, [speed.high for _, speed in rows], [f"{speed.median:.1f}" for _, speed in rows])
    axes.set_xlabel("tokens/s")


def _memory(figure: Any, lineup: Lineup) -> None:
    rows = [(each, each.measured.peak_memory_bytes / 1e6) for each in lineup.entrants if each.measured is not None]
    if not rows:
        return
    axes = _bars(figure, lineup, [each for each, _ in rows])
    axes.barh(range(len(rows)), [value for _, value in rows], color=[_colour(each) for each, _ in rows], height=0.66)
    _labels(axes, [value for _, value in rows], [megabytes(1e6 * value) for _, value in rows])
    axes.set_xlabel("MB")


def _layers(figure: Any, lineup: Lineup) -> None:
    """Those of the decoder, or of all that an encoder has."""
    shown = [each for each in lineup.entrants if any(row.error for row in each.layers)]
    if not shown:
        return
    figure.set_size_inches(HALF, 2.8)
    axes, handles, every = figure.subplots(), {}, list[float]()
    for index, each in enumerate(shown):
        rows = [row for row in each.layers if row.stack == "decoder"] or list(each.layers)
        values = [max(row.error, 1e-9) for row in rows]
        style = {"marker": MARKS[index % len(MARKS)], "linestyle": LINES[index % len(LINES)], "markersize": 4}
        (line,) = axes.plot([row.layer for row in rows], values, color=COLOURS[f"k{index % 8}"], linewidth=1.4, **style)
        handles[str(numbered(lineup)[each.name])] = line
        every += values
    log_axis(axes.yaxis, min(every), max(every))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    axes.grid(axis="y")
    legend(figure, handles, columns=6)


def _colour(entrant: Entrant) -> str:
    return COLOURS["ours" if entrant.is_bundle else "rival"]


def _bars(figure: Any, lineup: Lineup, entrants: Sequence[Entrant], head: float = 0.5, width: float = HALF) -> Any:
    figure.set_size_inches(width, head + BAR * len(entrants))
    axes = figure.subplots()
    axes.set_yticks(range(len(entrants)), [str(numbered(lineup)[each.name]) for each in entrants])
    axes.invert_yaxis()
    axes.grid(axis="x")
    return axes


def _labels(axes: Any, ends: Sequence[float], texts: Sequence[str]) -> None:
    """Write behind the ends of bars, with room for it."""
    longest = max(ends)
    axes.set_xlim(0, longest * (1 + ROOM))
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.text(end + 0.02 * longest, row, text, va="center", ha="left")


PLOTS: Mapping[str, Callable[[Any, Lineup], None]] = {
    "pareto": _pareto, "first_token": _first_token, "decode": _decode, "memory": _memory, "layers": _layers,
}  # fmt: skip
