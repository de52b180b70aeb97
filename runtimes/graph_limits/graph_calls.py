"""One node as rules see it: what goes in, its attributes, and what they say of its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .graph_values import Known, Refused
from .monomials import (
    ONE,
    ZERO,
    Scale,
    Size,
)


class Call(NamedTuple):
    """One node: what goes in (None where it is left out), its attributes, and whose sums its inputs are."""

    kind: str
    given: Sequence[Known | None]
    settings: Mapping[str, Any]
    scale: Scale
    outputs: Sequence[str]
    steps: Callable[[int, int], Known | None]  # by how much the numbers of one input are above those of another

    def at(self, index: int) -> Known:
        """An input that must be there."""
        known = self.given[index] if index < len(self.given) else None
        if known is None:
            raise Refused(f"its {self.kind} lacks an input")
        return known

    def optional(self, index: int) -> Known | None:
        return self.given[index] if index < len(self.given) else None

    def number(self, name: str, default: int = 0) -> int:
        """An attribute that is a whole number."""
        found = self.settings.get(name)
        return default if found is None else int(found.i)

    def axis(self, rank: int, default: int = 0) -> int:
        axis = self.number("axis", default)
        if not -rank <= axis < rank:
            raise Refused(f"its {self.kind} has the axis {axis} of {rank}")
        return axis % rank


class Made(NamedTuple):
    """The results of a node, and how many multiplications it takes beside writing them."""

    results: list[Known]
    products: Size = ZERO


Rule = Callable[[Call], Made]


def result(dims: Sequence[Size], numbers: Sequence[Size] | None = None, most: Size | None = None) -> Made:
    """A single result."""
    return Made([Known(tuple(dims), None if numbers is None else tuple(numbers), most)])


def spread(call: Call, *given: Known) -> tuple[Size, ...]:
    """Sizes of values that are stretched to one another's."""
    rank = max(len(known.dims) for known in given)
    made = [ONE] * rank
    for known in given:
        for place, size in enumerate(known.dims, start=rank - len(known.dims)):
            made[place] = stretch(call.scale, made[place], size)
    return tuple(made)


def stretch(scale: Scale, one: Size, other: Size) -> Size:
    """An axis of two values that are stretched to one another's sizes."""
    if one in (ONE, other):
        return other
    if other == ONE:
        return one
    for size in (one, other):  # a constant above one is what both are, or the other is one
        if size.is_number() and size.factor > 1:
            return size
    return scale.larger(one, other)
