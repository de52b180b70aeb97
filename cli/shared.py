"""What the commands share: consoles, tables, units, groups of options, and the check that an extra is installed."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..targets.errors import MissingExtra

Function = TypeVar("Function", bound=Callable[..., Any])
PRINTED = "lensmith.printed"  # in the context of a command that printed its JSON
PLAIN_WIDTH = 160  # columns where the output is no terminal


def named(parameter: click.Parameter) -> str:
    """An option as people write it, with the other way of a switch: "--sample/--greedy"."""
    return "/".join((parameter.opts[-1], *parameter.secondary_opts))


class Once(click.Command):
    """A command that refuses an option given twice, of which click would drop the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        seen: set[click.Parameter] = set()
        for parameter in order:
            if isinstance(parameter, click.Option) and not parameter.multiple and not parameter.count:
                if parameter in seen:
                    raise click.UsageError(f"{named(parameter)} is given twice; leave one of them out", ctx)
                seen.add(parameter)
        return super().parse_args(ctx, args)


class AboveZero(click.FloatRange):
    """A number above zero, up to `most`; click's own ranges take NaN for one of theirs."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(0, most, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


def options(*decorators: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Several click options as one decorator, shown in their order."""

    def add(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def parse_size(_: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Bytes of a size as people write it, in decimal units: "1.2GB", "900 MB". A callback of click's options."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", value.strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f'{value!r} is not a size; expected one like "1.2GB" or "900MB"', param=option)
    return int(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()])


class NewFolder(click.Path):
    """The path of a folder to make; an empty one would be the current folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            self.fail("the name of the new folder is empty", parameter, context)
        return super().convert(value, parameter, context)


NEW_FOLDER = NewFolder(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
FORCE = click.option("--force", is_flag=True, help="Replace what lensmith made there before.")
DEVICE = click.option("--device", metavar="NAME", help="cpu runs a bundle for CUDA without a GPU; default: its target.")
KEYS = click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Take the bundle only if the owner of this public key signed it. Repeatable.",
)  # fmt: skip
THREADS = click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads; default: one for each core.")


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


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def needs(extra: str, feature: str) -> Iterator[None]:
    """Turn a failed import of another package within the block into a MissingExtra that names the extra."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("", "lensmith"):
            raise
        raise MissingExtra(f"{feature} (no module {error.name!r})", extra) from error


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage on stderr, with the time left; the function to call with (stage, done, total)."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    target = console(stderr=True)
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()  # the writers of weights call from several threads
    with Progress(*columns, console=target, disable=not target.is_terminal) as bars:

        def advance(stage: str, done: int, total: int) -> None:
            with lock:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage.replace("_", " "), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance
