"""The command that decides: compare, bundles next to their checkpoint in PyTorch, to each other and to other ways."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..targets.errors import CheckFailed, InputError
from .long_work import needs, stages
from .option_types import THREADS, Once
from .screen import console

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
FILE = click.Path(path_type=Path, dir_okay=False)
ALONE = ("lensmith compare BUNDLE needs something beside the bundle: --against CHECKPOINT, other bundles, "
         "a --baseline, or a --fail-if")  # fmt: skip


@click.command(cls=Once, short_help="Measure BUNDLEs beside PyTorch: size, speed, memory, answers.")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--against",
    "checkpoint",
    type=click.Path(path_type=Path),
    help="The checkpoint: its folder, or its name on the hub.",
)
@click.option("--hub-revision", metavar="NAME", help="Branch, tag or commit of a checkpoint on the Hugging Face hub.")
@click.option("--adapter", type=click.Path(path_type=Path), metavar="FOLDER", help="The adapter of the export.")
@click.option("--baseline", "baselines", multiple=True, metavar="NAME", help="Another way to run it. Repeatable.")
@click.option(
    "--tasks",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Questions with answers: JSON lines, or a benchmark as lmms-eval and VLMEvalKit have it.",
)
@click.option(
    "--benchmark", metavar="NAME", help="Of --tasks, where the names of files do not tell: DocVQA and others."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Samples of each task.")
@click.option("--image", type=FILE, help="The image to time; default: a generated photo.")
@click.option("--html", "page", type=FILE, help="Write a report as one page.")
@click.option("--markdown", type=FILE, help="Write tables for a pull request.")
@click.option("--json", "data", metavar="FILE", help="Write the figures as JSON; - for standard output.")
@click.option(
    "--fail-if",
    metavar="CONDITION",
    help='Exit code 1 where it is true of a bundle: "decode_tps<10 or accuracy_drop>1".',
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)),
              help="Of PyTorch; fp32, if given, is the reference of accuracy. Default: fp32, bf16.")  # fmt: skip
@THREADS
def compare(
    bundles: tuple[Path, ...],
    checkpoint: Path | None,
    hub_revision: str | None,
    adapter: Path | None,
    page: Path | None,
    markdown: Path | None,
    data: str | None,
    fail_if: str | None,
    dtypes: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Measure size, memory, speed and accuracy of BUNDLEs next to their checkpoint in PyTorch and to each other."""
    from ..exporters.reports.gate import Gate
    from ..runtimes.storage.new_file import check_new_file

    if checkpoint is None and len(bundles) == 1 and not chosen["baselines"] and fail_if is None:
        raise InputError(ALONE)
    gate = None if fail_if is None else Gate.parse(fail_if)
    for file in (page, markdown, None if data == "-" else data):
        if file is not None:
            check_new_file(file)
    _check_idle(chosen, checkpoint, {"--hub-revision": hub_revision, "--adapter": adapter, "--dtype": dtypes})
    with needs("torch", "lensmith compare"):
        from ..exporters.comparing.comparison import CompareOptions
    names = tuple(DTYPES[name] for name in dtypes or DTYPES)
    wishes = CompareOptions(dtypes=names, command=shlex.join(["lensmith", *sys.argv[1:]]), **chosen)
    report = _measured(bundles, checkpoint, hub_revision, adapter, wishes)
    _write(report, page, markdown, data)
    if gate is not None:
        gate.check(_gate_figures(report))
    if failed := getattr(report, "failed", ()):
        raise CheckFailed(f"{len(failed)} could not be measured: {failed[0].name}: {failed[0].failure}")


def _check_idle(chosen: Mapping[str, Any], checkpoint: Path | None, of_checkpoint: Mapping[str, Any]) -> None:
    if chosen["limit"] is not None and chosen["tasks"] is None:
        raise InputError("--limit counts the questions of --tasks; name their file with --tasks, or leave it out")
    if chosen["benchmark"] is not None and chosen["tasks"] is None:
        raise InputError("--benchmark says what --tasks holds; name its file with --tasks, or leave it out")
    for option, value in of_checkpoint.items():
        if value and checkpoint is None:
            raise InputError(f"{option} is about a checkpoint; name it with --against, or leave {option} out")


def _measured(
    bundles: tuple[Path, ...], checkpoint: Path | None, revision: str | None, adapter: Path | None, wishes: Any
) -> Any:
    """The report of one bundle and its checkpoint, or of any others."""
    from ..exporters.checkpoint.hub import located, located_adapter
    from ..exporters.comparing.comparison import compare as measure
    from ..exporters.comparing.lineup import compare_many, encodes_alone

    with stages() as progress:
        folder = None if checkpoint is None else located(checkpoint, revision)
        changes = located_adapter(adapter)
        if folder is not None and len(bundles) == 1 and not wishes.baselines and not encodes_alone(bundles[0]):
            return measure(bundles[0], folder, wishes, progress, adapter=changes)
        return compare_many(bundles, folder, wishes, progress, adapter=changes)


def _gate_figures(report: Any) -> dict[str, dict[str, float]]:
    from ..exporters.reports.lineup_records import entrant_figures
    from ..exporters.reports.records import Report

    if isinstance(report, Report):
        return {report.bundle.name: report.figures}
    return {entrant.name: entrant_figures(entrant) for entrant in report.bundles if entrant.measured}


def _write(report: Any, page: Path | None, markdown: Path | None, data: str | None) -> None:
    """The tables on the terminal, then the files that were asked for, their paths last."""
    from ..runtimes.storage.new_file import write_text

    table, html, text = _forms(report)
    if data == "-":
        click.echo(report.to_json(), nl=False)
    else:
        console().print(table(report))
    if data not in (None, "-"):
        write_text(data, report.to_json())
        click.echo(data)
    if markdown is not None:
        write_text(markdown, text(report))
        click.echo(markdown, err=data == "-")
    if page is not None:
        with needs("report", "a report with plots"):
            write_text(page, html(report))
        click.echo(page, err=data == "-")


def _forms(report: Any) -> tuple[Callable[[Any], Any], Callable[[Any], str], Callable[[Any], str]]:
    """What makes the tables, the page and the Markdown of a report."""
    from ..exporters.reports import lineup_report
    from ..exporters.reports import report as single
    from ..exporters.reports.lineup_records import Lineup

    if isinstance(report, Lineup):
        return lineup_report.lineup_table, lineup_report.lineup_html, lineup_report.lineup_markdown
    return single.table, single.html, lineup_report.report_markdown
