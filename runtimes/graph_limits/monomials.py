"""Upper bounds of sizes and counts in a graph, as products of what varies from run to run.

A grid of frames, height and width has as many patches as their product says: a bound that is a product of the three
keeps what a number would lose. `Scale` says how large each of them is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import NamedTuple

Powers = tuple[tuple[str, int], ...]  # of what varies, by name
GRID = ("frames", "height", "width")  # whose product is the number of patches
MOST = 1 << 62  # beyond this, integers of 64 bits wrap around


class Size(NamedTuple):
    """A factor times powers. What is `exact` is not a bound but the size itself, also of a constant below zero."""

    factor: float
    powers: Powers = ()
    exact: bool = True

    def is_number(self) -> bool:
        """Whether it is known and the same in each run."""
        return self.exact and not self.powers


ZERO, ONE = Size(0), Size(1)


def symbol(name: str) -> Size:
    """What varies, by itself."""
    return Size(1, ((name, 1),))


def times(first: Size, *others: Size) -> Size:
    """The product."""
    return reduce(_times, others, first)


def _times(one: Size, other: Size) -> Size:
    factor = one.factor * other.factor
    exact = one.exact and other.exact
    if not one.powers or not other.powers:
        return Size(factor, one.powers or other.powers, exact)
    powers = dict(one.powers)
    for name, power in other.powers:
        powers[name] = powers.get(name, 0) + power
    return Size(factor, tuple(sorted(item for item in powers.items() if item[1])), exact)


def over(one: Size, other: Size) -> Size:
    """A bound of the quotient of integers that are not zero; of one that is divided by a bound: itself."""
    if not other.exact or not other.factor:
        return Size(abs(one.factor), one.powers, False)
    inverse = Size(1 / abs(other.factor), tuple((name, -power) for name, power in other.powers))
    return _times(one if one.exact else Size(abs(one.factor), one.powers, False), inverse)


class Scale:
    """How large everything that varies is at most."""

    def __init__(self, sizes: Mapping[str, float], patches: float) -> None:
        self.sizes, self.patches = dict(sizes), patches
        self._known: dict[tuple[float, Powers], float] = {}

    def value(self, size: Size) -> float:
        """The largest magnitude that a bound stands for. Nothing that varies is below one."""
        key = size[:2]
        if key not in self._known:
            self._known[key] = self._value(size)
        return self._known[key]

    def _value(self, size: Size) -> float:
        made, grid = abs(size.factor), 0
        for name, power in size.powers:
            if name in GRID:
                grid = max(grid, power)
            elif power > 0:
                made *= float(self.sizes[name]) ** min(power, 16)
        return made * float(self.patches) ** min(grid, 16)

    def plus(self, one: Size, other: Size) -> Size:
        """A bound of the sum, and of the difference."""
        exact = one.exact and other.exact and one.factor >= 0 and other.factor >= 0
        if one.powers == other.powers:
            return Size(abs(one.factor) + abs(other.factor), one.powers, exact)
        for given, zero in ((one, other), (other, one)):
            if zero == ZERO:
                return given
        if _is_even(one) and _is_even(other):
            return Size(self.value(one) + self.value(other), (), False)
        return Size(abs(one.factor) + abs(other.factor), _highest(one, other), False)

    def larger(self, one: Size, other: Size) -> Size:
        """A bound of the larger one."""
        if one == other:
            return one
        if one.powers == other.powers:
            exact = one.is_number() and other.is_number() and min(one.factor, other.factor) >= 0
            return Size(max(abs(one.factor), abs(other.factor)), one.powers, exact)
        if _is_even(one) and _is_even(other):
            chosen = max(one, other, key=self.value)
            return Size(abs(chosen.factor), chosen.powers, False)
        return Size(max(abs(one.factor), abs(other.factor)), _highest(one, other), False)

    def smaller(self, one: Size, other: Size) -> Size:
        """That of two bounds of one size which says more."""
        return one if self.value(one) <= self.value(other) else other


def _is_even(size: Size) -> bool:
    """Whether a number says as much: it does not where it is to be multiplied with the other sizes of a grid."""
    powers = dict(size.powers)
    return len({powers.get(name, 0) for name in GRID}) == 1


def _highest(one: Size, other: Size) -> Powers:
    powers = dict(one.powers)
    for name, power in other.powers:
        powers[name] = max(powers.get(name, power), power)
    return tuple(sorted(powers.items()))


def product(sizes: Iterable[Size]) -> Size:
    """The product of any number of sizes."""
    return reduce(_times, sizes, ONE)
