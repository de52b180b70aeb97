"""What the operations of a chat template cost: the budget of one rendering, and estimates before an operation runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_VALUE = 1 << 22  # characters and items of one value
MAX_WORK = 1 << 27  # characters and items made by one rendering, all together
_MAX_BITS = 1 << 16  # of an integer
_MAX_SEARCH = 1 << 28  # product of the lengths of text and pattern where Python's search is quadratic


class _Budget:
    """What is left of the time and of the work of one rendering."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.work = MAX_WORK

    def spend(self, work: int) -> None:
        self.work -= work
        if self.work < 0:
            raise SecurityError(f"more than {MAX_WORK} characters of work")
        if time.monotonic() > self.deadline:
            raise SecurityError("more time than it may use")


_budget: ContextVar[_Budget | None] = ContextVar("lensmith_template_budget", default=None)


def spend(work: int) -> None:
    """Charge `work` to the rendering under way; raises SecurityError when its budget or its time is used up."""
    if (budget := _budget.get()) is not None:
        budget.spend(work)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Give what runs inside a budget of its own."""
    token = _budget.set(_Budget(seconds))
    try:
        yield
    finally:
        _budget.reset(token)


def weighed(value: Any) -> Any:
    """Charge for `value`, its characters and items through nested containers, and refuse it when it is too large."""
    pending, weight = [value], 0
    while pending:
        item = pending.pop()
        weight += 1
        if isinstance(item, str | bytes | range):
            weight += len(item)
        elif isinstance(item, list | tuple | set | frozenset):
            weight += len(item)
            pending.extend(item if weight <= MAX_VALUE else ())
        elif isinstance(item, dict):
            weight += len(item)
            pending.extend([*item.keys(), *item.values()] if weight <= MAX_VALUE else ())
        elif isinstance(item, int):
            weight += item.bit_length() >> 3
        if weight > MAX_VALUE:
            raise SecurityError(f"a value of more than {MAX_VALUE} characters")
    spend(weight)
    return value


def expect(weight: int) -> None:
    """Refuse an operation whose result would weigh this much."""
    if weight > MAX_VALUE:
        raise SecurityError(f"a value of more than {MAX_VALUE} characters")


def _weigh_format(pattern: str, values: Any) -> None:
    """Before formatting: a field may hold all values, padded to a width from the pattern or, with `*`, from a value."""
    widths = sum(int(number[:9]) for number in re.findall(r"\d+", pattern))
    if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):
        items = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
        widths += max((abs(item) for item in items if isinstance(item, int)), default=0) * len(pattern)
    fields = pattern.count("%") + pattern.count("{")
    expect(len(pattern) + widths)
    weighed(values)
    expect(fields * len(str(values)))


def _weigh_times(left: Any, right: Any) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | bytes | list | tuple) and isinstance(count, int):
            expect(len(value) * count)
    if isinstance(left, int) and isinstance(right, int):
        _expect_bits(left.bit_length() + right.bit_length())


def _weigh_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _expect_bits(left.bit_length() * right)


def _expect_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise SecurityError(f"an integer of more than {_MAX_BITS} bits")


def _weigh_sum(left: Any, right: Any) -> None:
    if hasattr(left, "__len__") and hasattr(right, "__len__"):
        expect(len(left) + len(right))


def _weigh_join(separator: Any, items: Any) -> None:
    expect(sum(map(len, map(str, items))) + len(str(separator)) * len(items))


def _weigh_replace(text: Any, old: Any, new: Any, *_: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    expect(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _weigh_width(text: Any, width: Any = 80, *_: Any, **__: Any) -> None:
    expect(int(width) + len(str(text)))


def _weigh_lines(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    lines = len(str(text).splitlines()) + 1 + str(text).count("\t")
    expect(len(str(text)) + lines * (width if isinstance(width, int) else len(width)))


def _weigh_start(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum of something else than numbers")


def _refused(*_: Any, **__: Any) -> None:
    raise SecurityError("a method that is not offered to templates")


def _weigh_search(text: str, pattern: Any = None, *_: Any, **__: Any) -> None:
    if isinstance(pattern, str) and len(text) * len(pattern) > _MAX_SEARCH:
        raise SecurityError("a backward search for a long text")


OPERATORS: dict[str, Callable[..., None]] = {
    "+": _weigh_sum, "*": _weigh_times, "**": _weigh_power,
    "%": lambda left, right: _weigh_format(left, right) if isinstance(left, str) else None,
}  # fmt: skip
METHODS: dict[str, Callable[..., None]] = {
    "join": _weigh_join, "replace": _weigh_replace, "center": _weigh_width, "ljust": _weigh_width,
    "rjust": _weigh_width, "zfill": _weigh_width, "expandtabs": _weigh_lines, "translate": _refused,
    "striptags": _refused, **dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition"), _weigh_search),
    "format": lambda text, *args, **kwargs: _weigh_format(text, {**dict(enumerate(args)), **kwargs}),
    "format_map": lambda text, values: _weigh_format(text, dict(values)),
}  # fmt: skip
FILTERS: dict[str, Callable[..., None]] = {
    "join": lambda items, d="", attribute=None: _weigh_join(d, items),
    "replace": _weigh_replace, "center": _weigh_width, "indent": _weigh_lines, "sum": _weigh_start,
    "format": lambda text, *args, **kwargs: _weigh_format(str(text), kwargs or args),
    "batch": lambda items, linecount, fill_with=None: expect(linecount),
    "slice": lambda items, slices, fill_with=None: expect(slices),
    "tojson": lambda value, ensure_ascii=False, indent=None, *_, **__: _check_indent(indent),
}  # fmt: skip


def _check_indent(indent: Any) -> None:
    if indent is not None and not (isinstance(indent, int) and indent <= 64):
        raise SecurityError("tojson with an indent that is not a number up to 64")
