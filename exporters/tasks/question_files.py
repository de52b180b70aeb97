"""Any file of questions: lensmith's own JSON lines, or those of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

from ...targets.errors import InputError
from ..comparing.cases import Case, read_tasks
from .benchmark_cases import read_benchmark
from .task_tables import READERS

OWN = "prompt"  # a key of lensmith's own lines, which name their images and are read whole


def read_questions(path: Path, folder: Path, benchmark: str | None = None, limit: int | None = None) -> list[Case]:
    """The questions of a file, up to `limit` of each task; pictures within it are written into `folder`."""
    if path.is_dir() or (path.suffix.lower() in READERS and not _own(path)):
        return read_benchmark(path, folder, benchmark, limit)
    if benchmark is not None:
        raise InputError(f"{path} has lensmith's own lines, whose answers are matched exactly; leave out --benchmark")
    return read_tasks(path, limit)


def _own(path: Path) -> bool:
    """Whether the first line of JSON lines is one of lensmith's own, or cannot be read, which the reader will tell."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return path.suffix.lower() == ".jsonl"
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not isinstance(row, dict) or OWN in row or "question" not in row
