"""Files of questions row by row, as evaluation toolkits leave them: TSV, parquet and JSON lines.

Such files hold their pictures, and may be larger than the memory: only a part of one is read at a time.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...targets.errors import InputError, MissingExtra

Row = Mapping[str, Any]
TABS = ".tsv"
ROWS_AT_ONCE = 16  # of a parquet file, each with its pictures
MOST_FIELD = (1 << 31) - 1  # signs: a long integer of C, which is short on Windows


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row of a file, or of all parquet files of a folder, with a name for messages."""
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise InputError(f"the folder {path} has no .parquet files; expected those of one data set, or name a file")
        for file in files:
            yield from read_rows(file)
        return
    if not path.is_file():
        raise InputError(
            f"{path} is no file; expected questions as {', '.join(READERS)}, or a folder of .parquet files"
        )
    for number, row in enumerate(READERS[path.suffix.lower()](path), 1):
        yield f"row {number} of {path.name}", row


def _tab_separated(path: Path) -> Iterator[Row]:
    before = csv.field_size_limit(MOST_FIELD)  # a picture is one field
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # tables of Windows begin with a mark
            for row in csv.DictReader(file, dialect="excel-tab"):
                yield {name: value or None for name, value in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table separated by tabs ({error}); expected one of VLMEvalKit") from None
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_object(line, f"line {number} of {path}")


def _json_object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is {type(row).__name__}; expected an object with a question and its answer")
    return row


def _parquet(path: Path) -> Iterator[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtra("reading tasks from parquet", "tasks") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # of which pyarrow's own errors are kinds
        raise InputError(f"{path} is not a parquet file ({str(error)[:200]}); copy it again") from None


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    TABS: _tab_separated,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}
