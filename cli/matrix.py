"""The command that builds many: matrix, of models by targets by formats by precisions, and one report of them all."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..targets.errors import CheckFailed
from .long_work import needs, stages
from .option_types import Once
from .screen import console, print_json, size, table

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Once, short_help="Build many models for many targets, and compare them.")
@click.argument("file", type=FILE)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Builds at once.")
@click.option("--ray", "address", metavar="ADDRESS", help='Build on a Ray cluster; "local" starts one here.')
@click.option("--html", "page", type=FILE, help="Measure all bundles and write a report as one page.")
@click.option("--markdown", type=FILE, help="Measure all bundles and write tables for a pull request.")
@click.option("--report", "data", type=FILE, help="Measure all bundles and write the figures as JSON.")
@click.option("--fail-if", metavar="CONDITION", help="Measure them; exit code 1 where it is true of a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of each cell as JSON.")
def matrix(
    file: Path,
    jobs: int,
    address: str | None,
    page: Path | None,
    markdown: Path | None,
    data: Path | None,
    fail_if: str | None,
    as_json: bool,
) -> None:
    """Build what FILE says: models by targets by formats by precisions. What is there already is not built again."""
    from ..exporters.reports.gate import Gate
    from ..runtimes.storage.new_file import check_new_file

    gate = None if fail_if is None else Gate.parse(fail_if)
    for new in (page, markdown, data):
        if new is not None:
            check_new_file(new)
    found = _read(file, gate, measured=any((page, markdown, data, gate)))
    built = _built(found, jobs, address)
    _show(built, as_json)
    if any((page, markdown, data, gate)) and any(each.bundle for each in built):
        _report(found, built, page, markdown, data, gate)
    if failed := [each for each in built if each.state == "failed"]:
        raise CheckFailed(f"{len(failed)} of {len(built)} builds failed, {failed[0].name}: {failed[0].failure}; "
                          "run the command again to build what is missing")  # fmt: skip


def _read(file: Path, gate: Any, *, measured: bool) -> Any:
    """The matrix; with `measured` all that its report needs is checked, so that no build is in vain."""
    with needs("export", "lensmith matrix"):
        from ..exporters.matrix.matrix_file import read_matrix
        from ..exporters.matrix.matrix_run import measuring_options
        from ..exporters.matrix.measuring_check import check_measuring
    found = read_matrix(file)
    options = measuring_options(found.compare)
    if measured:
        check_measuring(found, options, gate)
    return found


def _built(found: Any, jobs: int, address: str | None) -> list[Any]:
    from ..exporters.matrix.matrix_run import local_builds, run_matrix
    from ..exporters.matrix.ray_builds import ray_builds

    builds = local_builds(jobs) if address is None else ray_builds(address, jobs)
    with stages() as progress:
        return run_matrix(found, builds, progress)


def _show(built: Sequence[Any], as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json({"cells": [msgspec.to_builtins(each) for each in built]})
        return
    rows = [_row(each) for each in built]
    console().print(table("Builds", ["cell", "state", ">size", ">seconds", "manifest"], rows))


def _row(each: Any) -> tuple[str, ...]:
    place = size(each.size_bytes) if each.bundle else ""
    return each.name, each.state, place, f"{each.seconds:.1f}", each.sha256[:12]


def _report(
    found: Any, built: Sequence[Any], page: Path | None, markdown: Path | None, data: Path | None, gate: Any
) -> None:
    from ..exporters.matrix.matrix_run import measure_matrix
    from ..exporters.reports.lineup_records import entrant_figures
    from ..exporters.reports.lineup_report import lineup_html, lineup_markdown
    from ..runtimes.storage.new_file import write_text

    with stages() as progress:
        lineup = measure_matrix(found, built, shlex.join(["lensmith", *sys.argv[1:]]), progress)
    if data is not None:
        write_text(data, lineup.to_json())
        click.echo(data, err=True)
    if markdown is not None:
        write_text(markdown, lineup_markdown(lineup))
        click.echo(markdown, err=True)
    if page is not None:
        with needs("report", "a report with plots"):
            write_text(page, lineup_html(lineup))
        click.echo(page, err=True)
    if gate is not None:
        gate.check({each.name: entrant_figures(each) for each in lineup.bundles if each.measured})
    if failed := lineup.failed:
        raise CheckFailed(f"{len(failed)} could not be measured: {failed[0].name}: {failed[0].failure}")
