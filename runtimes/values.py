"""Checks of numbers that callers give: what is no number, or none in its range, is an InputError of one sentence."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from ..targets.errors import InputError, closest

MOST = (1 << 63) - 1


def whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """`value` as an int from `least` to `most`; numpy's integers are fine, truth values and 2.0 are not."""
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most
    if not fits:
        limit = f"of at least {least}" if most == MOST else f"from {least} to {most}"
        raise InputError(f"{name} is {shown(value)}; expected a whole number {limit}")
    return int(value)


def number(name: str, value: Any, least: float, most: float, *, above: bool = False) -> float:
    """`value` as a float from `least` to `most`, or `above` the least; numpy's numbers are fine, NaN is not."""
    found = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (least < found if above else least <= found) or not found <= most:
        begin = f"above {least:g}" if above else f"from {least:g}"
        limit = f"{begin}" if most == math.inf else f"{begin} to {most:g}"
        raise InputError(f"{name} is {shown(value)}; expected a number {limit}")
    return found


def finite(name: str, value: Any) -> float:
    """`value` as a float above 0, but not infinity."""
    found = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not 0 < found < math.inf:
        raise InputError(f"{name} is {shown(value)}; expected a positive number")
    return found


def truth(name: str, value: Any) -> bool:
    """`value` as a bool; numpy's are fine, numbers and texts are not."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name} is {shown(value)}; expected True or False")
    return bool(value)


def only(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """InputError for a name that is none of `known`, with the closest."""
    for name in given:
        if name not in known:
            raise InputError(f"{what} has no {name!r}; {closest(name, known)}")


def shown(value: Any) -> str:
    """A value for messages, on one line and cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
