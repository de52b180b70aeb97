"""An output file that appears whole or not at all, and whose place is checked before the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ...targets.errors import InputError

DEVICES = ("/dev/", "/proc/")


def check_new_file(path: str | Path) -> None:
    """Raise InputError where no file can be written; folders that are missing are made when it is."""
    place = Path(path)
    if place.is_dir():
        raise InputError(f"{path} is a folder; expected the path of a file to write")
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not folder.is_dir() or not (os.access(folder, os.W_OK) or place.exists()):
        raise InputError(f"{path} cannot be written: {folder} is no folder that you may write to; choose another one")


@contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name at the end of the block. Pipes and devices are written as they are."""
    check_new_file(path)
    given = Path(path)
    if str(given.absolute()).startswith(DEVICES) or (given.exists() and not given.is_file()):
        with open(given, "wb") as file:
            yield file
        return
    real = Path(os.path.realpath(given))
    real.parent.mkdir(parents=True, exist_ok=True)
    partial = real.with_name(f".{real.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        partial.replace(real)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())
