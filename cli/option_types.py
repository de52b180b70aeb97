"""What options of the command line may be: types, groups, and those that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


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


def parse_seconds(_: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Seconds of a time as people write it: "1.5s", "800ms", "2". A callback of click's options."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)?", value.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise click.BadParameter(f'{value!r} is not a time; expected one like "1.5s" or "800ms"', param=option)
    return float(found[1]) * (0.001 if (found[2] or "s").lower() == "ms" else 1)


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


BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
