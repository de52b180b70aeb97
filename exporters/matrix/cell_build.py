"""Builds one cell of a matrix: `python -m lensmith.exporters.matrix.cell_build JOB.json`, or by a call.

A bundle lies in a folder named by a hash of all that it depends on. What is there is not built again, whoever built it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...runtimes.bundle.manifest import MANIFEST
from ...runtimes.bundle.opening import open_bundle
from ...runtimes.process.lifeline import end_with_parent
from ...runtimes.storage.files import dump_json, read_json, write_json
from ...targets.errors import InputError, LensmithError
from ..bundle_manifest import tools
from ..job import Job, Options
from ..pipeline import export, prepare
from .matrix_file import Cell

KEY_SIGNS = 16  # of a hash in the name of a folder
Golden = Literal["auto", "always", "never"]


class CellJob(msgspec.Struct, frozen=True):
    """A cell, and where bundles lie."""

    cell: Cell
    out: str
    golden: Golden = "auto"


class Built(msgspec.Struct, frozen=True):
    """What became of a cell."""

    name: str
    cell: Cell
    state: Literal["built", "kept", "failed"]
    key: str = ""  # of all that the bundle depends on
    bundle: str = ""
    sha256: str = ""  # of the manifest, which has those of all files
    size_bytes: int = 0
    seconds: float = 0.0
    failure: str = ""


def build_cell(job: CellJob) -> Built:
    """Build a cell unless its bundle is there. What goes wrong is in the record."""
    started = time.monotonic()
    try:
        found = _build(job)
    except LensmithError as error:
        found = Built(job.cell.name, job.cell, "failed", failure=str(error))
    except Exception as error:  # of one cell; the others go on
        found = Built(job.cell.name, job.cell, "failed", failure=f"{type(error).__name__}: {str(error)[:300]}")
    return msgspec.structs.replace(found, seconds=round(time.monotonic() - started, 2))


def _build(job: CellJob) -> Built:
    cell = job.cell
    prepared = prepare(cell.model, Options(format=cell.format, precision=cell.precision, target=cell.target))
    key = content_key(prepared, job.golden)
    found = next(iter(sorted(Path(job.out).glob(f"*-{key[:KEY_SIGNS]}"))), None)
    if found is not None:
        return _record(job, "kept", key, found)
    place = Path(job.out) / f"{cell.name}-{key[:KEY_SIGNS]}"
    export(prepared, place, golden=job.golden)
    return _record(job, "built", key, place)


def content_key(job: Job, golden: str) -> str:
    """A hash of the files of the checkpoint, the options, the target and the versions of the tools."""
    files = {name: record["sha256"] for name, record in job.checkpoint.source_files().items()}
    target = msgspec.to_builtins(job.target)
    text = dump_json([files, vars(job.options), target, golden, tools(job.lowering.tools)])
    return hashlib.sha256(text.encode()).hexdigest()


def _record(job: CellJob, state: Literal["built", "kept"], key: str, place: Path) -> Built:
    bundle = open_bundle(place)
    size = sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())
    sha256 = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    return Built(job.cell.name, job.cell, state, key, str(bundle.path), sha256, size)


def main(arguments: Sequence[str]) -> int:
    """Build the cell of a job file and write its record beside it."""
    end_with_parent()
    path = Path(arguments[0])
    found = build_cell(read_record(path, CellJob))
    write_json(path.with_name("built.json"), msgspec.to_builtins(found))
    return 0


def read_record(path: Path, kind: type[Any]) -> Any:
    """A record of a JSON file; InputError for another one."""
    try:
        return msgspec.convert(read_json(path), kind)
    except (msgspec.ValidationError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no record of a matrix ({error}); run it again") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
