"""A bundle against its checkpoint in PyTorch: speed, memory, size and accuracy, each contender in its own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..runtimes.records import Report

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class CompareOptions:
    """What to measure."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # of PyTorch; the first is the reference of accuracy
    threads: int | None = None  # of every contender; None: one for each core
    repeats: int = 3
    tasks: Path | None = None  # JSONL of {"task", "images": [paths relative to it], "prompt", "answer"}
    limit: int | None = None  # samples of each task
    image: Path | None = None  # to time; None: a generated photo
    prompt: str = "Describe this image."
    decode_steps: int = 32
    command: str = ""  # the command line, for the report


def compare(
    bundle_path: str | Path,
    checkpoint_path: str | Path,
    options: CompareOptions | None = None,
    progress: Progress = lambda *_: None,
) -> Report:
    """Measure all contenders one after another.

    Raises InputError for unusable inputs, MissingExtra without PyTorch, and LensmithError when a contender fails.
    """
    raise NotImplementedError
