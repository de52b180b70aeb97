"""Estimates of what a template's operations make: the largest that is allowed, and the one behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from lensmith.runtimes.prompt.template_costs import (
    FILTERS,
    MAX_VALUE,
    MAX_WORK,
    METHODS,
    OPERATORS,
    limited,
    spend,
    weighed,
)

BITS, DIGITS, SIDE = 1 << 16, 300, 1 << 14  # SIDE^2 steps of a search
# An operation, arguments whose result is as large as may be, and arguments whose result is larger.
EDGES: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
    "text * number": (OPERATORS["*"], ("ab", MAX_VALUE // 2), ("ab", MAX_VALUE // 2 + 1)),
    "number * text": (OPERATORS["*"], (MAX_VALUE // 2, "ab"), (MAX_VALUE // 2 + 1, "ab")),
    "number * list": (OPERATORS["*"], (MAX_VALUE, [0]), (MAX_VALUE + 1, [0])),
    "number * number": (OPERATORS["*"], (1 << 32767, 1 << 32767), (1 << 32768, 1 << 32767)),
    "power": (OPERATORS["**"], (2, BITS // 2), (2, BITS // 2 + 1)),
    "power of a large one": (OPERATORS["**"], (1 << 1023, 64), (1 << 1024, 64)),
    "sum": (OPERATORS["+"], (range(MAX_VALUE - 1), [0]), (range(MAX_VALUE), [0])),
    "width": (OPERATORS["%"], ("%4194295d", 1), ("%4194296d", 1)),  # with the pattern itself
    "fields": (OPERATORS["%"], ("%s" * 64, "a" * (MAX_VALUE // 64)), ("%s" * 64, "a" * (MAX_VALUE // 64 + 1))),
    "width from a value": (OPERATORS["%"], ("%*d", ((MAX_VALUE - 3) // 3, 1)), ("%*d", ((MAX_VALUE - 3) // 3 + 1, 1))),
    "width from a keyword": (
        lambda width: METHODS["format"]("{:{w}}", "a", w=width),
        ((MAX_VALUE - 6) // 6,),
        ((MAX_VALUE - 6) // 6 + 1,),
    ),
    "width from a mapping": (
        lambda width: METHODS["format_map"]("{a:{w}}", {"a": 1, "w": width}),
        ((MAX_VALUE - 7) // 7,),
        ((MAX_VALUE - 7) // 7 + 1,),
    ),
    "format filter": (FILTERS["format"], ("%4194295d", 1), ("%4194296d", 1)),
    "join": (METHODS["join"], ("ab", ["x"] * (MAX_VALUE // 3)), ("ab", ["x"] * (MAX_VALUE // 3 + 1))),
    "join filter": (FILTERS["join"], (["x"] * (MAX_VALUE // 3), "ab"), (["x"] * (MAX_VALUE // 3 + 1), "ab")),
    "replace": (METHODS["replace"], ("aa", "a", "b" * (MAX_VALUE // 2)), ("aa", "a", "b" * (MAX_VALUE // 2 + 1))),
    "center": (METHODS["center"], ("a", MAX_VALUE - 1), ("a", MAX_VALUE)),
    "tabs": (METHODS["expandtabs"], ("\t", (MAX_VALUE - 1) // 3), ("\t", (MAX_VALUE - 1) // 3 + 1)),
    "strip": (METHODS["strip"], ("a" * SIDE, "b" * SIDE), ("a" * SIDE, "b" * (SIDE + 1))),
    "rfind": (METHODS["rfind"], ("a" * SIDE, "b" * SIDE), ("a" * (SIDE + 1), "b" * SIDE)),
    "round": (FILTERS["round"], (1.5, DIGITS), (1.5, DIGITS + 1)),
    "round down": (FILTERS["round"], (15, -DIGITS), (15, -DIGITS - 1)),
    "round a text": (FILTERS["round"], (15, 1), ("15", 1)),
    "start of a sum": (FILTERS["sum"], ([1], None, 1.5), ([[1]], None, [])),
    "batch": (FILTERS["batch"], ([], MAX_VALUE), ([], MAX_VALUE + 1)),
    "slice": (FILTERS["slice"], ([], MAX_VALUE), ([], MAX_VALUE + 1)),
    "json": (FILTERS["tojson"], ([0] * (MAX_VALUE // 2 - 1),), ([0] * (MAX_VALUE // 2),)),
    "indented": (
        lambda value: FILTERS["tojson"](value, indent=10),  # two levels: 22 characters for each value
        ([0] * (MAX_VALUE // 22 - 1),),
        ([0] * (MAX_VALUE // 22),),
    ),
    "indent": (FILTERS["tojson"], ([1], False, 64), ([1], False, 65)),
    "negative indent": (FILTERS["tojson"], ([1], False, 0), ([1], False, -1)),
    "a text": (weighed, ("a" * (MAX_VALUE - 1),), ("a" * MAX_VALUE,)),
    "a list": (weighed, ([0] * ((MAX_VALUE - 1) // 5),), ([0] * ((MAX_VALUE - 1) // 5 + 1),)),
    "a dict": (
        weighed,
        (dict.fromkeys(range((MAX_VALUE - 1) // 6), 0),),
        (dict.fromkeys(range((MAX_VALUE - 1) // 6 + 1), 0),),
    ),
    "nested": (weighed, ([{"a": "b" * (MAX_VALUE - 13)}],), ([{"a": "b" * (MAX_VALUE - 12)}],)),
    "an integer": (weighed, (1 << (BITS - 1),), (1 << BITS,)),
}


@pytest.fixture(autouse=True)
def budget() -> Iterator[None]:
    with limited(600):
        yield


@pytest.mark.parametrize("case", EDGES)
def test_edges(case: str) -> None:
    estimate, allowed, refused = EDGES[case]
    estimate(*allowed)
    with pytest.raises(SecurityError):
        estimate(*refused)


def test_work_adds_up() -> None:
    spend(MAX_WORK - 5)
    weighed("abc")  # and 1 for itself
    spend(1)
    with limited(600):  # what runs inside has a budget of its own
        spend(MAX_WORK)
        with pytest.raises(SecurityError, match=f"more than {MAX_WORK} characters of work"):
            spend(1)
    with pytest.raises(SecurityError, match=f"more than {MAX_WORK} characters of work"):
        spend(1)


def test_what_ran_inside_leaves_the_budget_as_it_was() -> None:
    with limited(600):
        spend(MAX_WORK)
    spend(MAX_WORK)


def test_time_ends() -> None:
    with limited(-1.0), pytest.raises(SecurityError, match="more time"):
        spend(0)
