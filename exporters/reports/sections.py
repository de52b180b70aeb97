"""What a report says and in which order: a sentence, the figures that stand out, and a table for each subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .intervals import mcnemar
from .records import (
    Agreement,
    Contender,
    Repeated,
    Report,
    TaskScore,
)
from .units import (
    megabytes,
    milliseconds,
    nats,
    percent,
    points,
    times,
)

WHERE = {"answers": "tokens of the answers", "prompts": "text of prompts with images"}
RATIO = "ratio to the better PyTorch"  # above 1 is in favour of the bundle
Row = tuple[str, ...]


@dataclass(frozen=True)
class ReportSection:
    """One subject: what it shows, and its table, whose first column names the row."""

    name: str
    title: str
    lead: str
    head: Row  # empty for pairs of a name and a value
    rows: tuple[Row, ...]
    alt: str = ""  # what its plot shows, in words; the title, where empty
    folded: bool = False  # the table gives the figures of the plot, and may be hidden
    half: bool = False  # two of them have room side by side


@dataclass(frozen=True)
class Tile:
    """One figure that stands out."""

    figure: str
    label: str
    detail: str
    worse: bool = False  # than PyTorch


def headline(report: Report) -> str:
    """The comparison in one sentence."""
    ratios = report.ratios
    size = f"takes {megabytes(report.bundle_bytes)} instead of {megabytes(report.source_bytes)}"
    speed = f"reaches the first token {_speed(ratios['first_token'])}, decodes {_speed(ratios['decode'])}"
    change = 1 / max(ratios["memory"], 1e-9) - 1
    more = f"{100 * abs(change):.0f} % {'less' if change < 0 else 'more'}"
    memory = f"needs {more} memory next to the better PyTorch run"
    return f"The {report.precision} bundle of {report.model} {size}, {speed} and {memory}; {_quality(report)}."


def _speed(ratio: float) -> str:
    return f"{times(ratio)} as fast" if ratio >= 1 else f"at {percent(ratio)} of the speed"


def _quality(report: Report) -> str:
    if (total := report.total) is not None:
        difference, low, high = map(points, total.difference)
        return (
            f"it answers {percent(total.bundle_accuracy)} of {total.samples} questions right, {report.reference} "
            f"{percent(total.reference_accuracy)} (difference {difference} points, 95 % interval {low} to {high})"
        )
    if (row := _own_agreement(report)) is not None:
        place = f"{percent(row.top1)} of {row.positions} positions"
        return f"its likeliest next token is that of {report.reference} at {place}"
    return "its answers were not compared"


def _own_agreement(report: Report) -> Agreement | None:
    found = (row for row in report.agreement if row.contender == report.bundle.name and row.where == "answers")
    return next(found, None)


def tiles(report: Report) -> Iterator[Tile]:
    """The figures for the top of the page."""
    bundle, row = report.bundle, _own_agreement(report)
    size = f"{megabytes(report.bundle_bytes)} of {megabytes(report.source_bytes)}"
    first, decode = milliseconds(bundle.first_token_ms), f"{bundle.decode_tokens_per_s.median:.1f} tokens/s"
    yield _ratio_tile(report, "size", "smaller", "larger", size)
    yield _ratio_tile(report, "first_token", "faster to first token", "slower to first token", f"{first} with an image")
    yield _ratio_tile(report, "decode", "faster decoding", "slower decoding", decode)
    yield _ratio_tile(report, "memory", "less memory", "more memory", f"{megabytes(bundle.peak_memory_bytes)} at peak")
    if (total := report.total) is not None:
        detail = f"{percent(total.bundle_accuracy)} of {total.samples} questions"
        yield Tile(points(total.difference[0]), "points of accuracy", detail)
    if row is not None:
        yield Tile(percent(row.top1), "same top token", f"mean KL {nats(row.kl_mean)} nats")


def _ratio_tile(report: Report, name: str, better: str, worse: str, detail: str) -> Tile:
    ratio = max(report.ratios[name], 1e-9)
    return Tile(times(max(ratio, 1 / ratio)), better if ratio >= 1 else worse, detail, ratio < 1)


def sections(report: Report) -> Iterator[ReportSection]:
    """All subjects in the order of the page."""
    yield _sizes(report)
    yield _first_token(report)
    yield _decode(report)
    yield _memories(report)
    if report.total is not None:
        yield _tasks(report, report.total)
    if report.agreement:
        yield _distributions(report)
    yield _perplexity(report)


def _sizes(report: Report) -> ReportSection:
    parts = [(part.name, part.source_bytes, part.bundle_bytes) for part in report.components]
    parts.append(("total", report.source_bytes, report.bundle_bytes))
    rows = [
        (name, megabytes(source), megabytes(bundle), percent(bundle / source) if source and bundle else "-")
        for name, source, bundle in parts
    ]
    head = ("part", "checkpoint", "bundle", "ratio")
    return ReportSection("sizes", "Size", "Bytes of all files, by part of the model.", head, tuple(rows))


def _first_token(report: Report) -> ReportSection:
    work = report.workload
    lead = (
        f"{work.width} \N{MULTIPLICATION SIGN} {work.height} image: {work.image_tokens} of {work.prompt_tokens} prompt "
        f"tokens; {work.threads} threads; medians (least to greatest) of {work.repeats} warm runs, in ms. "
        "Ratios above 1 are in favour of the bundle."
    )
    rows = [_first_token_row(contender) for contender in report.contenders]
    ratios = (RATIO, *_ratios(report, "load"), "", *_ratios(report, "vision", "prefill", "first_token"))
    head = ("", "load", "image processing", "vision encoder", "prefill", "first token")
    return ReportSection("first_token", "Time to first token", lead, head, (*rows, ratios))


def _first_token_row(contender: Contender) -> Row:
    phases = map(spread_text, (contender.image_ms, contender.vision_ms, contender.prefill_ms))
    return contender.name, f"{contender.load_ms:.0f}", *phases, f"{contender.first_token_ms:.0f}"


def _decode(report: Report) -> ReportSection:
    rows: list[Row] = [(contender.name, spread_text(contender.decode_tokens_per_s)) for contender in report.contenders]
    lead = f"{report.workload.decode_steps} greedy tokens behind that prompt."
    rows.append((RATIO, *_ratios(report, "decode")))
    return ReportSection("decode", "Decoding", lead, ("", "tokens/s"), tuple(rows), half=True)


def _memories(report: Report) -> ReportSection:
    rows: list[Row] = [(contender.name, megabytes(contender.peak_memory_bytes)) for contender in report.contenders]
    lead = "Most resident memory of each process, libraries included."
    rows.append((RATIO, *_ratios(report, "memory")))
    return ReportSection("memory", "Peak memory", lead, ("", "peak"), tuple(rows), half=True)


def _tasks(report: Report, total: TaskScore) -> ReportSection:
    p = mcnemar(total.only_reference, total.only_bundle)
    lead = (
        f"{_counted(report)} of greedy answers on the same samples, with Wilson's 95 % intervals; the interval of the "
        f"difference is paired (Newcombe). McNemar's exact test over all tasks: p = {p:.2g}."
    )
    head = ("task", "samples", report.bundle.name, report.reference, "difference, points", "95 % interval")
    return ReportSection("tasks", "Accuracy by task", lead, head, tuple(map(_task_row, (total, *report.tasks))))


def _counted(report: Report) -> str:
    """How answers count, in words."""
    if all(task.metric == "exact match" for task in report.tasks):
        return "Exact matches"
    named = ", ".join(f"{task.metric} ({task.task})" for task in report.tasks)
    return f"Scores in per cent by the metric of each task, {named},"


def _task_row(score: TaskScore) -> Row:
    difference, low, high = map(points, score.difference)
    bundle = _interval(score.bundle_accuracy, score.bundle_interval)
    reference = _interval(score.reference_accuracy, score.reference_interval)
    return score.task, str(score.samples), bundle, reference, difference, f"{low} to {high}"


def _distributions(report: Report) -> ReportSection:
    order = [contender.name for contender in report.contenders]
    rows = sorted(report.agreement, key=lambda row: (row.where, order.index(row.contender)))
    lead = f"KL divergence from {report.reference} in nats, on {report.samples}."
    head = ("", "positions", "mean KL", "median", "99 %", "same top token")
    return ReportSection("kl", "Distributions", lead, head, tuple(map(_agreement_row, rows)))


def _agreement_row(row: Agreement) -> Row:
    figures = map(nats, (row.kl_mean, row.kl_median, row.kl_p99))
    return f"{row.contender}, {WHERE[row.where]}", str(row.positions), *figures, percent(row.top1)


def _perplexity(report: Report) -> ReportSection:
    rows = [(contender.name, f"{report.perplexity[contender.name]:.4g}") for contender in report.contenders]
    lead = "Of the reference answers, given token by token."
    return ReportSection("perplexity", "Perplexity", lead, ("", "perplexity"), tuple(rows))


def _ratios(report: Report, *names: str) -> Row:
    return tuple(times(report.ratios[name]) for name in names)


def spread_text(spread: Repeated) -> str:
    median, low, high = (f"{v:.0f}" if v >= 100 else f"{v:.1f}" for v in (spread.median, spread.low, spread.high))
    return f"{median} ({low} to {high})"


def _interval(share: float, interval: tuple[float, float]) -> str:
    return f"{percent(share)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
