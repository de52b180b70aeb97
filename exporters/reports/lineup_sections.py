"""What a report of many builds says and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from .lineup_records import Entrant, Lineup, compared, entrant_figures
from .sections import ReportSection, Row, Tile, spread_text
from .units import megabytes, milliseconds, nats, percent, points, times

FIGURES = ("size", "first token", "decode", "memory")  # in which entrants are compared with the reference
BEST: Mapping[str, tuple[int, str, Callable[[float], str]]] = {  # 1: less is better
    "size_mb": (1, "smallest", lambda value: megabytes(1e6 * value)),
    "first_token_ms": (1, "first to answer", milliseconds),
    "decode_tps": (-1, "fastest decoding", lambda value: f"{value:.1f} /s"),
    "memory_mb": (1, "least memory", lambda value: megabytes(1e6 * value)),
    "accuracy": (-1, "most right answers", lambda value: f"{value:.1f} %"),
}
EQUAL = "equal"
NONE = "-"


def numbered(lineup: Lineup) -> dict[str, int]:
    """The number of each entrant, by which plots and tables call it."""
    return {entrant.name: number for number, entrant in enumerate(lineup.entrants, 1)}


def lineup_headline(lineup: Lineup) -> str:
    """The smallest and the most right builds in one sentence."""
    bundles = [entrant for entrant in lineup.bundles if entrant.measured]
    if not bundles:
        return "No bundle could be measured."
    parts = []
    smallest = min(bundles, key=lambda each: each.size_bytes)
    parts.append(f"{smallest.name} is the smallest with {megabytes(smallest.size_bytes)}")
    quickest = min(bundles, key=lambda each: each.measured.first_token_ms if each.measured else 0.0)
    assert quickest.measured is not None
    what = "its features" if quickest.measured.decode_tokens_per_s is None else "its first token"
    parts.append(f"{quickest.name} has {what} first, after {milliseconds(quickest.measured.first_token_ms)}")
    if best := [each for each in bundles if each.accuracy is not None]:
        right = max(best, key=lambda each: each.accuracy or 0.0)
        parts.append(f"{right.name} has the most right answers, {percent(right.accuracy or 0.0)}")
    failed = f" {len(lineup.failed)} of {len(lineup.entrants)} failed." if lineup.failed else ""
    return f"{len(bundles)} bundles: {'; '.join(parts)}.{failed}"


def lineup_tiles(lineup: Lineup) -> Iterator[Tile]:
    """The best of each figure."""
    measured = [entrant for entrant in lineup.bundles if entrant.measured]
    if not measured:
        return
    figures = {entrant.name: entrant_figures(entrant) for entrant in measured}
    for name, (sign, label, form) in BEST.items():
        values = [(sign * found[name], who) for who, found in figures.items() if name in found]
        if values:
            value, who = min(values, key=lambda pair: pair[0])
            yield Tile(form(sign * value), label, who)


def lineup_sections(lineup: Lineup) -> Iterator[ReportSection]:
    """All subjects in the order of the page."""
    yield _overview(lineup)
    yield _ratios(lineup)
    yield _latency(lineup)
    yield _pareto(lineup)
    yield _decode(lineup)
    yield _memory(lineup)
    if any(entrant.layers for entrant in lineup.entrants):
        yield _layers(lineup)
    if any(entrant.tasks for entrant in lineup.entrants):
        yield _tasks(lineup)
    if lineup.failed:
        rows = tuple((_name(lineup, entrant), entrant.failure) for entrant in lineup.failed)
        yield ReportSection("failed", "Failed", "What could not be measured.", ("", "why"), rows)


def _name(lineup: Lineup, entrant: Entrant) -> str:
    return f"{numbered(lineup)[entrant.name]} {entrant.name}"


def _overview(lineup: Lineup) -> ReportSection:
    head: Row = (
        "",
        "build",
        "size",
        "first token",
        "tokens/s",
        "peak memory",
        "right",
        "lost, points",
        "KL",
        "same top",
    )
    rows: list[Row] = [(_name(lineup, entrant), *_overview_cells(entrant)) for entrant in lineup.entrants]
    if any(entrant.feature_error is not None for entrant in lineup.entrants):
        head = ("", "build", "size", "features after", "peak memory", "error of features")
        errors = [NONE if each.feature_error is None else nats(each.feature_error) for each in lineup.entrants]
        rows = [(*row[:4], row[5], error) for row, error in zip(rows, errors, strict=True)]
    lead = (
        f"Medians of {lineup.repeats} warm runs with {lineup.threads} threads. Measured on {lineup.samples}. "
        f"The machine's noise, by which two processes of one bundle differ: {noise_text(lineup)}."
    )
    return ReportSection("overview", "All builds", lead, head, tuple(rows))


def noise_text(lineup: Lineup) -> str:
    """The noise of each figure in words."""
    return ", ".join(f"{name} {percent(value)}" for name, value in sorted(lineup.noise.items())) or "not measured"


def _overview_cells(entrant: Entrant) -> Row:
    made, agreement = entrant.measured, entrant.agreement
    if made is None:
        return (
            entrant.build,
            megabytes(entrant.size_bytes),
            f"needs {entrant.lacks}" if entrant.lacks else "failed",
            *[NONE] * 6,
        )
    decode = made.decode_tokens_per_s
    return (
        entrant.build,
        megabytes(entrant.size_bytes),
        milliseconds(made.first_token_ms),
        f"{decode.median:.1f}" if decode else NONE,
        megabytes(made.peak_memory_bytes),
        NONE if entrant.accuracy is None else percent(entrant.accuracy),
        NONE if entrant.drop is None else points(entrant.drop.mean),
        NONE if agreement is None else nats(agreement.kl_mean),
        NONE if agreement is None else percent(agreement.top1),
    )


def _ratios(lineup: Lineup) -> ReportSection:
    by_name = {entrant.name: entrant for entrant in lineup.entrants}
    rows = []
    for entrant in lineup.entrants:
        base = by_name[lineup.references[entrant.model]]
        if entrant is not base:
            found = (compared(lineup, name, entrant, base) for name in FIGURES)
            rows.append((_name(lineup, entrant), _name(lineup, base), *map(_times, found)))
    lead = "How many times better in each figure; what lies within the machine's noise is called equal."
    return ReportSection("ratios", "Next to the reference", lead, ("", "reference", *FIGURES), tuple(rows))


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else EQUAL if ratio == 1 else times(ratio)


def quality(entrant: Entrant) -> float | None:
    """What the plot against size shows: right answers, else the same likeliest tokens, in per cent."""
    figures = entrant_figures(entrant)
    return figures.get("accuracy", figures.get("top1"))


def frontier(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Those that no other one beats in size and quality, the smallest first."""
    best, found = float("-inf"), list[Entrant]()
    for entrant in sorted(entrants, key=lambda each: (each.size_bytes, -(quality(each) or 0.0))):
        value = quality(entrant)
        if value is not None and value > best:
            best = value
            found.append(entrant)
    return found


def _pareto(lineup: Lineup) -> ReportSection:
    best = frontier(lineup.entrants)
    rows = tuple(
        (_name(lineup, each), megabytes(each.size_bytes), f"{value:.1f} %", "yes" if each in best else "no")
        for each in lineup.entrants
        if (value := quality(each)) is not None
    )
    asked = any(each.accuracy is not None for each in lineup.entrants)
    lead = (
        f"{'Right answers' if asked else 'Positions with the likeliest token of the reference'} against bytes of all "
    )
    lead += "files. Circles are bundles, squares other ways; none beats those on the line in both."
    head = ("", "size", "right" if asked else "same top", "on the line")
    return ReportSection("pareto", "Accuracy against size", lead, head, rows, folded=True, half=True)


def _latency(lineup: Lineup) -> ReportSection:
    rows = [
        (
            _name(lineup, each),
            f"{made.load_ms:.0f}",
            *(spread_text(part) if made.in_parts else "-" for part in (made.image_ms, made.vision_ms, made.prefill_ms)),
            f"{made.first_token_ms:.0f}",
        )
        for each in lineup.entrants
        if (made := each.measured) is not None
    ]
    lead = f"{lineup.image}, in ms: medians (least to greatest)."
    if any(each.measured is not None and not each.measured.in_parts for each in lineup.entrants):
        lead += " Other programs do not tell the parts."
    head = ("", "load", "image processing", "vision encoder", "prefill", "first token")
    return ReportSection("first_token", "Time to first token", lead, head, tuple(rows), folded=True)


def _decode(lineup: Lineup) -> ReportSection:
    rows = [
        (_name(lineup, each), spread_text(each.measured.decode_tokens_per_s))
        for each in lineup.entrants
        if each.measured is not None and each.measured.decode_tokens_per_s is not None
    ]
    lead = f"{lineup.decode_steps} greedy tokens behind that prompt, with the range of all repeats."
    return ReportSection("decode", "Decoding", lead, ("", "tokens/s"), tuple(rows), folded=True, half=True)


def _memory(lineup: Lineup) -> ReportSection:
    rows = [
        (_name(lineup, each), megabytes(each.measured.peak_memory_bytes))
        for each in lineup.entrants
        if each.measured is not None
    ]
    lead = "Most resident memory of each process, libraries included."
    return ReportSection("memory", "Peak memory", lead, ("", "peak"), tuple(rows), folded=True, half=True)


def _tasks(lineup: Lineup) -> ReportSection:
    shown = [each for each in lineup.entrants if each.tasks]
    rows = [
        (task.task, task.metric, str(task.samples), *(_right(each, task.task) for each in shown))
        for task in shown[0].tasks
    ]
    head = ("", "metric", "samples", *(_name(lineup, each) for each in shown))
    lead = "Greedy answers to the same samples, in per cent, with Wilson's 95 % intervals, or normal ones of degrees."
    return ReportSection("tasks", "Accuracy by task", lead, head, tuple(rows))


def _right(entrant: Entrant, task: str) -> str:
    found = next((row for row in entrant.tasks if row.task == task), None)
    return NONE if found is None else f"{100 * found.mean:.1f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _layers(lineup: Lineup) -> ReportSection:
    rows = [
        (_name(lineup, each), row.stack, str(row.layer), f"{row.error:.4f}")
        for each in lineup.entrants
        for row in each.layers
    ]
    lead = (
        "Root mean square error of the rounded weights of each layer, relative to the weights; the decoder's are drawn."
    )
    return ReportSection("layers", "Error by layer", lead, ("", "part", "layer", "error"), tuple(rows), folded=True,
                         half=True)  # fmt: skip
