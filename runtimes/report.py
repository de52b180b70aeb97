"""A comparison for people: one sentence, tables for the terminal, and one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .plots import draw
from .records import Contender, Report, Spread, TaskScore
from .units import megabytes, milliseconds, percent, times

TEMPLATES = Path(__file__).parent / "templates"
WHERE = {"answers": "tokens of the answers", "prompts": "text of prompts with images"}


@dataclass(frozen=True)
class Section:
    """One subject: what it shows, and its table, the first column names and the others figures."""

    name: str
    title: str
    lead: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Tile:
    """One figure that stands out."""

    figure: str
    label: str
    detail: str


def table(report: Report) -> Group:
    """The figures as tables of rich: `console.print(table(report))`."""
    parts: list[RenderableType] = [Text(headline(report), style="bold")]
    for section in sections(report):
        grid = Table(title=section.title, title_justify="left", title_style="bold", caption=section.lead,
                     caption_justify="left")  # fmt: skip
        for index, name in enumerate(section.head):
            grid.add_column(Text(name), justify="right" if index else "left")
        for row in section.rows:
            grid.add_row(*map(Text, row))
        parts += [Text(), grid]
    parts += [Text(), *(Text(note, style="dim") for note in (*report.notes, _machine(report)))]
    return Group(*parts)


def html(report: Report) -> str:
    """One HTML page with plots, without references to anything outside. Raises MissingExtra without matplotlib."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    page = environment.get_template("report.html.jinja")
    return page.render(
        report=report, headline=headline(report), tiles=list(tiles(report)), sections=list(sections(report)),
        plots=draw(report), machine=_machine(report),
    )  # fmt: skip


def headline(report: Report) -> str:
    """The comparison in one sentence."""
    ratios, total = report.ratios, report.total
    figures = [
        f"takes {megabytes(report.bundle_bytes)} instead of {megabytes(report.source_bytes)}",
        f"reaches the first token {_faster(ratios['first_token'])}",
        f"decodes {_faster(ratios['decode'])}",
        f"needs {_less(ratios['memory'])} memory",
    ]
    speed = f"The {report.precision} bundle of {report.model} " + ", ".join(figures[:-1]) + f" and {figures[-1]}"
    return f"{speed} next to the better PyTorch run; {_quality(report, total)}."


def _quality(report: Report, total: TaskScore | None) -> str:
    if total is not None:
        difference, low, high = total.difference
        return (f"it answers {percent(total.bundle_accuracy)} of {total.samples} questions right, {report.reference} "
                f"{percent(total.reference_accuracy)} (difference {_points(difference)}, "
                f"95 % interval {_points(low)} to {_points(high)})")  # fmt: skip
    found = [row for row in report.agreement if row.contender == report.bundle.name and row.where == "answers"]
    if not found:
        return "its answers were not compared"
    return (f"its likeliest next token is that of {report.reference} at {percent(found[0].top1)} of "
            f"{found[0].positions} positions")  # fmt: skip


def _faster(ratio: float) -> str:
    return f"{times(ratio)} as fast" if ratio >= 1 else f"at {percent(ratio)} of the speed"


def _less(ratio: float) -> str:
    change = 1 / ratio - 1 if ratio else 0.0
    return f"{abs(change):.0%} {'less' if change < 0 else 'more'}".replace("%", " %")


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points".replace("-", "\N{MINUS SIGN}")


def tiles(report: Report) -> Iterator[Tile]:
    """The figures for the top of the page."""
    ratios, bundle, total = report.ratios, report.bundle, report.total
    figures = (
        ("size", "smaller", "larger", f"{megabytes(report.bundle_bytes)} of {megabytes(report.source_bytes)}"),
        ("first_token", "faster to the first token", "slower to the first token",
         f"{milliseconds(bundle.first_token_ms)} with an image"),
        ("decode", "faster decoding", "slower decoding", f"{bundle.decode_tokens_per_s.median:.1f} tokens/s"),
        ("memory", "less memory", "more memory", f"{megabytes(bundle.peak_memory_bytes)} at the peak"),
    )  # fmt: skip
    for name, better, worse, detail in figures:
        ratio = ratios[name]
        yield Tile(times(max(ratio, 1 / ratio)), better if ratio >= 1 else worse, detail)
    if total is not None:
        yield Tile(_points(total.difference[0]).removesuffix(" points"), "points of task accuracy",
                   f"{percent(total.bundle_accuracy)} of {total.samples} questions")  # fmt: skip
    for row in report.agreement:
        if row.contender == bundle.name and row.where == "answers":
            yield Tile(percent(row.top1), "same likeliest token", f"mean KL {_kl(row.kl_mean)} nats")


def sections(report: Report) -> Iterator[Section]:
    """All subjects in the order of the page."""
    work, names = report.workload, tuple(contender.name for contender in report.contenders)
    yield Section("sizes", "Size", "Bytes of all files, by part of the model.",
                  ("part", "checkpoint", "bundle", "ratio"), tuple(_size_rows(report)))  # fmt: skip
    lead = (f"{work.width} \N{MULTIPLICATION SIGN} {work.height} image ({work.image_tokens} of {work.prompt_tokens} prompt tokens), "
            f"{work.threads} threads; medians of {work.repeats} warm runs (least to greatest).")  # fmt: skip
    yield Section("first_token", "Time to first token", lead,
                  ("", "load", "image processing", "vision encoder", "prefill", "first token"),
                  (*map(_first_token_row, report.contenders), _ratio_row(report, "load", "", "vision", "prefill",
                                                                         "first_token")))  # fmt: skip
    yield Section("decode", "Decoding", f"{work.decode_steps} greedy tokens behind that prompt.", ("", "tokens/s"),
                  (*((c.name, _range(c.decode_tokens_per_s)) for c in report.contenders),
                   _ratio_row(report, "decode")))  # fmt: skip
    yield Section("memory", "Peak memory", "Most resident memory of the contender's own process, libraries included.",
                  ("", "peak"), (*((c.name, megabytes(c.peak_memory_bytes)) for c in report.contenders),
                                 _ratio_row(report, "memory")))  # fmt: skip
    if report.total is not None:
        yield Section("tasks", "Accuracy by task", "Exact matches of greedy answers on the same samples; whiskers are "
                      "Wilson's 95 % intervals, the interval of the difference is paired (Newcombe).",
                      ("task", "samples", report.bundle.name, report.reference, "difference", "95 % interval"),
                      tuple(map(_task_row, (report.total, *report.tasks))))  # fmt: skip
    if report.agreement:
        yield Section("kl", "Distributions", f"KL divergence from {report.reference} in nats, on {report.samples}.",
                      ("", "positions", "mean", "median", "99 %", "same top token"), tuple(_kl_rows(report)))  # fmt: skip
        yield Section("perplexity", "Perplexity", "Of the reference answers, teacher-forced.", ("", "perplexity"),
                      tuple((name, f"{report.perplexity[name]:.4g}") for name in names))  # fmt: skip


def _size_rows(report: Report) -> Iterator[tuple[str, ...]]:
    total = ("total", report.source_bytes, report.bundle_bytes)
    for name, source, bundle in (*((c.name, c.source_bytes, c.bundle_bytes) for c in report.components), total):
        yield name, megabytes(source), megabytes(bundle), percent(bundle / source) if source else "-"


def _first_token_row(contender: Contender) -> tuple[str, ...]:
    phases = (contender.image_ms, contender.vision_ms, contender.prefill_ms)
    return (
        contender.name,
        milliseconds(contender.load_ms),
        *map(_range, phases),
        milliseconds(contender.first_token_ms),
    )


def _ratio_row(report: Report, *names: str) -> tuple[str, ...]:
    return ("better than PyTorch", *(times(report.ratios[name]) if name else "" for name in names))


def _range(spread: Spread) -> str:
    def form(value: float) -> str:
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}"

    return f"{form(spread.median)} ({form(spread.low)} to {form(spread.high)})"


def _task_row(score: TaskScore) -> tuple[str, ...]:
    difference, low, high = score.difference
    return (score.task, str(score.samples), _interval(score.bundle_accuracy, score.bundle_interval),
            _interval(score.reference_accuracy, score.reference_interval), _points(difference),
            f"{_points(low).removesuffix(' points')} to {_points(high)}")  # fmt: skip


def _interval(share: float, interval: tuple[float, float]) -> str:
    return f"{percent(share)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _kl_rows(report: Report) -> Iterator[tuple[str, ...]]:
    order = [contender.name for contender in report.contenders]
    for row in sorted(report.agreement, key=lambda row: (row.where, order.index(row.contender))):
        figures = (row.kl_mean, row.kl_median, row.kl_p99)
        yield f"{row.contender}, {WHERE[row.where]}", str(row.positions), *map(_kl, figures), percent(row.top1)


def _kl(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _machine(report: Report) -> str:
    return ", ".join(f"{name} {value}" for name, value in report.environment.items())
