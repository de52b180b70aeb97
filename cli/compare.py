"""The command that decides: compare, a bundle against its checkpoint in PyTorch."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..targets.errors import InputError
from .long_work import needs, stages
from .option_types import THREADS, Once
from .screen import console

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Once, short_help="Measure size, memory, speed and accuracy next to PyTorch.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    "checkpoint",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint: its folder, or its name on the hub.",
)
@click.option("--hub-revision", metavar="NAME", help="Branch, tag or commit of a checkpoint on the Hugging Face hub.")
@click.option("--adapter", type=click.Path(path_type=Path), metavar="FOLDER", help="The adapter of the export.")
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
@click.option("--json", "data", metavar="FILE", help="Write the figures as JSON; - for standard output.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)),
              help="Of PyTorch; fp32, if given, is the reference of accuracy. Default: fp32, bf16.")  # fmt: skip
@THREADS
def compare(
    bundle: Path,
    checkpoint: Path,
    hub_revision: str | None,
    adapter: Path | None,
    page: Path | None,
    data: str | None,
    dtypes: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Measure size, memory, speed and accuracy of BUNDLE next to its checkpoint in PyTorch."""
    with needs("torch", "lensmith compare"):
        from ..exporters.checkpoint.hub import located, located_adapter
        from ..exporters.comparing.comparison import CompareOptions
        from ..exporters.comparing.comparison import compare as measure
        from ..runtimes.storage.new_file import check_new_file
    for file in (page, None if data == "-" else data):
        if file is not None:
            check_new_file(file)
    if chosen["limit"] is not None and chosen["tasks"] is None:
        raise InputError("--limit counts the questions of --tasks; name their file with --tasks, or leave it out")
    if chosen["benchmark"] is not None and chosen["tasks"] is None:
        raise InputError("--benchmark says what --tasks holds; name its file with --tasks, or leave it out")
    names = tuple(DTYPES[name] for name in dtypes or DTYPES)
    command = shlex.join(["lensmith", *sys.argv[1:]])
    with stages() as progress:
        wishes = CompareOptions(dtypes=names, command=command, **chosen)
        folder, changes = located(checkpoint, hub_revision), located_adapter(adapter)
        report = measure(bundle, folder, wishes, progress, adapter=changes)
    _write(report, page, data)


def _write(report: Any, page: Path | None, data: str | None) -> None:
    """The tables on the terminal, then the files that were asked for, their paths last."""
    from ..exporters.reports.report import html, table
    from ..runtimes.storage.new_file import write_text

    if data == "-":
        click.echo(report.to_json(), nl=False)
    else:
        console().print(table(report))
    if data not in (None, "-"):
        write_text(data, report.to_json())
        click.echo(data)
    if page is not None:
        with needs("report", "a report with plots"):
            write_text(page, html(report))
        click.echo(page, err=data == "-")
