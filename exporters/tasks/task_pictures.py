"""The pictures of a row of questions: bytes, base64 or paths, alone or in lists."""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from .task_tables import Row

COLUMNS = ("image", "images", *(f"image_{number}" for number in range(1, 10)))
PATHS = ("image_path", "image_paths")  # asked where no other column holds a picture
MOST_OF_INDEX = 64  # signs; an "image" this short in a table of VLMEvalKit is the index of the row that has it


def as_list(value: Any) -> list[Any]:
    """A value as a list, also one that a table has in Python's own writing; None is an empty one."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def picture_values(row: Row) -> list[Any]:
    """What a row holds of its pictures, in their order."""
    found = [value for name in COLUMNS for value in as_list(row.get(name))]
    return found or [value for name in PATHS for value in as_list(row.get(name))]


def other_row(row: Row) -> str | None:
    """The index of the row whose picture this one shares; None where it has its own."""
    value = row.get("image")
    if isinstance(value, str) and len(value) <= MOST_OF_INDEX and value.strip().isdigit() and "index" in row:
        return value.strip()
    return None


def save_pictures(where: str, row: Row, beside: Path, folder: Path, stem: str) -> tuple[str, ...]:
    """Paths of a row's pictures: of files `beside` the table as they are, of others below `folder`.

    InputError for what is no picture, or a path of no file.
    """
    return tuple(str(path) for path in _saved(where, row, beside, folder, stem))


def _saved(where: str, row: Row, beside: Path, folder: Path, stem: str) -> Iterator[Path]:
    for number, value in enumerate(picture_values(row)):
        content = _content(value)
        path = folder / f"{stem}-{number}"
        if content is not None:
            path.write_bytes(content)
        else:
            path = beside / _name(value)
            if not path.is_file():
                raise InputError(
                    f"{where} names a picture that is not there: {str(path)[:200]}; copy the pictures, too"
                )
        yield path.resolve()


def _content(value: Any) -> bytes | None:
    """The bytes of a picture that stands in the row; None for the path of one."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or len(value) <= MOST_OF_INDEX:
        return None
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError):
        return None


def _name(value: Any) -> str:
    return str(value.get("path") if isinstance(value, dict) else value)
