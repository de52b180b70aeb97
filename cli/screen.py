"""What commands print: tables and figures for people, JSON for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PRINTED = "lensmith.printed"  # in the context of a command that printed its JSON


PLAIN_WIDTH = 160  # columns where the output is no terminal


class Screen(Console):
    """A console that reports that nobody reads it as any other output does, instead of leaving the process."""

    def on_broken_pipe(self) -> None:
        raise


def console(*, stderr: bool = False) -> Console:
    """A console on the stream of now; wide where it is no terminal, so that no figure is cut."""
    stream = sys.stderr if stderr else sys.stdout
    return Screen(file=stream, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)


def print_json(data: object) -> None:
    """Print figures as JSON: null for numbers that it has no word for, and letters escaped that the output lacks."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[PRINTED] = True
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(finite(data), indent=2, allow_nan=False)
    click.echo(text)


def finite(data: Any) -> Any:
    """Figures with None in the place of infinities and NaN."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; columns whose name begins with ">" are aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def cell(value: object) -> str:
    """A value as text, without the markup of rich."""
    return escape(str(value))


def pairs(title: str, values: Mapping[str, object]) -> Table:
    """A table of names and values."""
    made = table(title, ["", ""], values.items())
    made.show_header = False
    return made


def size(nbytes: float) -> str:
    """Bytes for people, in decimal units: "1.31 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}" if nbytes < 100 * scale else f"{nbytes / scale:.0f} {unit}"
    return f"{nbytes:.0f} B"


def count(number: float) -> str:
    """A number of parameters for people: "2.13 B"."""
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:,.0f}"
