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
MAX_WORK = 1 << 26  # characters and items made by one rendering, all together
ITEM = 4  # what an item weighs, which takes more memory than a character
_MAX_BITS = 1 << 16  # of an integer
_MAX_DIGITS = 300  # that numbers are rounded to
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
            weight += ITEM * len(item)
            pending.extend(item if weight <= MAX_VALUE else ())
        elif isinstance(item, dict):
            weight += ITEM * len(item)
            pending.extend([*item.keys(), *item.values()] if weight <= MAX_VALUE else ())
        elif isinstance(item, int):
            _expect_bits(item.bit_length())  # dividing larger ones takes minutes
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


def _weigh_round(value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    """Python makes 10 to the power of the precision, for integers exactly."""
    if not isinstance(value, int | float) or not isinstance(precision, int) or abs(precision) > _MAX_DIGITS:
        raise SecurityError(f"round of something else than a number to up to {_MAX_DIGITS} digits")


def _weigh_strip(text: Any, chars: Any = None, *_: Any, **__: Any) -> None:
    """Each character of the text is looked for among `chars`."""
    if isinstance(chars, str | bytes) and len(str(text)) * len(chars) > _MAX_SEARCH:
        raise SecurityError("stripping a long text of many characters")


def _weigh_start(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum of something else than numbers")


def _weigh_search(text: str, pattern: Any = None, *_: Any, **__: Any) -> None:
    if isinstance(pattern, str) and len(text) * len(pattern) > _MAX_SEARCH:
        raise SecurityError("a backward search for a long text")


OPERATORS: dict[str, Callable[..., None]] = {
    "+": _weigh_sum, "*": _weigh_times, "**": _weigh_power,
    "%": lambda left, right: _weigh_format(left, right) if isinstance(left, str) else None,
}  # fmt: skip
METHODS: dict[str, Callable[..., None]] = {
    "join": _weigh_join, "replace": _weigh_replace, "center": _weigh_width, "ljust": _weigh_width,
    "rjust": _weigh_width, "zfill": _weigh_width, "expandtabs": _weigh_lines,
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _weigh_strip),
    **dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition"), _weigh_search),
    "format": lambda text, *args, **kwargs: _weigh_format(text, {**dict(enumerate(args)), **kwargs}),
    "format_map": lambda text, values: _weigh_format(text, dict(values)),
}  # fmt: skip
FILTERS: dict[str, Callable[..., None]] = {
    "join": lambda items, d="", attribute=None: _weigh_join(d, items),
    "replace": _weigh_replace, "center": _weigh_width, "indent": _weigh_lines, "sum": _weigh_start,
    "format": lambda text, *args, **kwargs: _weigh_format(str(text), kwargs or args),
    "batch": lambda items, linecount, fill_with=None: expect(linecount),
    "slice": lambda items, slices, fill_with=None: expect(slices),
    "round": _weigh_round, "trim": _weigh_strip,
    "tojson": lambda value, ensure_ascii=False, indent=None, separators=None, *_, **__:
        _weigh_json(value, indent, separators),
}  # fmt: skip


def _weigh_json(value: Any, indent: Any, separators: Any) -> None:
    """Each value stands on a line of its own, behind a separator, as deep as it lies."""
    if indent is not None and not (type(indent) is int and 0 <= indent <= 64):
        raise SecurityError("tojson with an indent that is not a number from 0 to 64")
    depth, values, level = 0, 0, [value]
    while level:
        depth, values = depth + 1, values + len(level)
        expect(values + depth)
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, _CONTAINERS))
        level = [item for items in inner for item in items]
    width = sum(map(len, separators)) if separators is not None else 2
    expect(values * (width + (0 if indent is None else depth * max(indent, 1))))


_CONTAINERS = (dict, list, tuple)
# Methods of values that templates may call, by type; whatever is not listed is refused.
_TEXT = """
    capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii isdecimal
    isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition
    removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip
    swapcase title upper zfill
"""
ALLOWED: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT.split()),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("count", "index", "copy")),
    tuple: frozenset(("count", "index")),
    **dict.fromkeys((bytes, int, float, complex, set, frozenset, range), frozenset()),
}
