"""Cells of a matrix on a cluster of Ray, whose machines see the same files."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import msgspec

from ...targets.errors import MissingExtra
from .cell_build import Built, CellJob, build_cell
from .matrix_run import Builds

TRIES = 3  # of a cell whose worker dies
CORES = 1.0  # that Ray sets aside for a cell


def ray_builds(address: str, workers: int) -> Builds:
    """Cells as tasks of the cluster at an address; "local" starts one here with so many workers.

    A task whose worker dies is tried again. Raises MissingExtra without Ray.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("a matrix on a cluster", "ray") from error

    def run(cells: Sequence[CellJob]) -> Iterator[Built]:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died
            _connect(ray, address, workers)
            try:
                yield from _results(ray, cells)
            finally:
                ray.shutdown()

    return run


def _connect(ray: Any, address: str, workers: int) -> None:
    """To a cluster whose machines have lensmith installed; the workers of one that starts here import what this has."""
    if address != "local":
        ray.init(address=address, log_to_driver=False)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    os.environ.setdefault("RAY_worker_niceness", "0")  # its usual 15 leaves workers behind all others of this machine
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)


def _results(ray: Any, cells: Sequence[CellJob]) -> Iterator[Built]:
    remote = ray.remote(num_cpus=CORES, max_retries=TRIES)(_build_as_json)
    waiting = {remote.remote(msgspec.json.encode(cell)): cell for cell in cells}
    while waiting:
        (done, *_), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(done)
        try:
            yield msgspec.json.decode(ray.get(done), type=Built)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[0][:300]
            yield Built(cell.cell.name, cell.cell, "failed", failure=f"its worker ended: {why}")


def _build_as_json(cell: bytes) -> bytes:
    return msgspec.json.encode(build_cell(msgspec.json.decode(cell, type=CellJob)))
