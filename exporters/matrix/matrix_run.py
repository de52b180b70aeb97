"""Runs the cells of a matrix, in processes of this machine or on a cluster, and tells what became of each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from ...runtimes.process.lifeline import lifeline
from ...runtimes.storage.files import write_json
from ..checkpoint.folder import open_checkpoint
from ..comparing.comparison import CompareOptions
from ..comparing.job_process import job_environment
from ..comparing.lineup import compare_groups, grouped
from ..distinct_names import distinct
from ..progress import Progress
from ..reports.lineup_records import Lineup
from .cell_build import Built, CellJob, build_cell, read_record
from .matrix_file import Cell, Compared, Matrix

RECORDS = "cells"  # the folder of what became of each cell, below the matrix's own
Builds = Callable[[Sequence[CellJob]], Iterator[Built]]  # in any order


def run_matrix(matrix: Matrix, builds: Builds, progress: Progress = lambda *_: None) -> list[Built]:
    """Build all cells that are not there yet, in the order of the matrix; each record is kept in `out`/cells.

    An interrupted run goes on where it was: bundles that are whole are kept, and an export resumes its own.
    """
    out = Path(matrix.out)
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    cells = matrix.cells
    names = dict(zip(cells, distinct(cell.name for cell in cells), strict=True))  # folders of models may be alike
    found: dict[Cell, Built] = {}
    for done, built in enumerate(builds([CellJob(cell, matrix.out, matrix.golden) for cell in cells])):
        progress("builds", done, len(cells))
        found[built.cell] = named = msgspec.structs.replace(built, name=names[built.cell])
        write_json(out / RECORDS / f"{named.name}.json", msgspec.to_builtins(named))
    progress("builds", len(cells), len(cells))
    return [found[cell] for cell in cells]


def local_builds(jobs: int) -> Builds:
    """Each cell in a process of its own, up to `jobs` at once."""

    def run(cells: Sequence[CellJob]) -> Iterator[Built]:
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(build_apart, cell) for cell in cells]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    return run


def build_apart(job: CellJob) -> Built:
    """Build a cell in a process of its own; one that ends by itself is a cell that failed."""
    with tempfile.TemporaryDirectory(prefix="lensmith-cell-") as folder:
        path = Path(folder) / "job.json"
        write_json(path, msgspec.to_builtins(job))
        command = [sys.executable, "-P", "-m", build_cell.__module__, str(path)]
        with lifeline() as line:
            ran = subprocess.run(
                command, stdin=line, capture_output=True, text=True, errors="replace", env=job_environment()
            )
        record = path.with_name("built.json")
        if ran.returncode == 0 and record.is_file():
            built: Built = read_record(record, Built)
            return built
        last = (ran.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
        why = f"its process ended with exit code {ran.returncode}: {last}"
        return Built(job.cell.name, job.cell, "failed", failure=why)


def measure_matrix(
    matrix: Matrix, built: Sequence[Built], command: str, progress: Progress = lambda *_: None
) -> Lineup:
    """All bundles of a matrix in one report; those of several cells count once."""
    models = dict.fromkeys(each.cell.model for each in built if each.bundle)
    checkpoints = [open_checkpoint(model) for model in models] if matrix.compare.against else []
    paths = list(dict.fromkeys(each.bundle for each in built if each.bundle))
    return compare_groups(
        grouped(paths, checkpoints, alone=False), measuring_options(matrix.compare, command), progress
    )


def measuring_options(wishes: Compared, command: str = "") -> CompareOptions:
    """How a matrix is measured, in the terms of compare; InputError for what cannot be."""
    return CompareOptions(
        dtypes=wishes.dtypes,
        threads=wishes.threads,
        repeats=wishes.repeats,
        tasks=Path(wishes.tasks) if wishes.tasks else None,
        benchmark=wishes.benchmark,
        limit=wishes.limit,
        image=Path(wishes.image) if wishes.image else None,
        command=command,
        baselines=wishes.baselines,
    )
