"""Mixed precision: one option for each tensor, of least cost within a size, or of least size within a cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """A way to store a tensor: its size, and what it costs in accuracy (a sum over tensors is meant to be small)."""

    bytes: int
    cost: float


@dataclass(frozen=True)
class _Choice:
    price: float  # what is limited
    loss: float  # what is minimized


@dataclass(frozen=True)
class _Step:
    """A move of one tensor along its hull."""

    gain: float  # loss saved for each unit of price
    tensor: int
    choice: int
    price: float


def choose(options: Sequence[Sequence[Option]], *, max_bytes: int | None, max_cost: float | None) -> list[int]:
    """The index of one option for each tensor.

    With max_bytes, the least cost that fits (ValueError if that is above a max_cost given too); with max_cost alone,
    the fewest bytes that keep it; with neither, the least cost. The multiple-choice knapsack problem by Lagrange
    multipliers: steps on each tensor's lower convex hull in order of their gain, then whatever still fits. At most one
    step away from the optimum. Raises ValueError where nothing fits.
    """
    if max_bytes is None and max_cost is not None:
        return _solve([[_Choice(option.cost, option.bytes) for option in row] for row in options], max_cost, "cost")
    limit = float("inf") if max_bytes is None else float(max_bytes)
    chosen = _solve([[_Choice(option.bytes, option.cost) for option in row] for row in options], limit, "bytes")
    cost = sum(row[index].cost for row, index in zip(options, chosen, strict=True))
    if max_cost is not None and cost > max_cost:
        raise ValueError(f"{max_bytes} bytes allow a cost of {cost:.6g} at best; expected at most {max_cost:.6g}")
    return chosen


def _solve(choices: list[list[_Choice]], limit: float, unit: str) -> list[int]:
    hulls = [_hull(row) for row in choices]
    chosen = [hull[0] for hull in hulls]
    left = limit - sum(row[index].price for row, index in zip(choices, chosen, strict=True))
    if left < 0:
        raise ValueError(f"even the smallest options need {limit - left:.6g} {unit}; the limit is {limit:.6g}")
    for step in sorted(_steps(choices, hulls), key=lambda step: -step.gain):
        if step.price > left:
            break
        chosen[step.tensor] = step.choice
        left -= step.price
    return _fill(choices, chosen, left)


def _hull(row: list[_Choice]) -> list[int]:
    """Choices on the lower convex hull, from the smallest price to the smallest loss."""
    hull: list[int] = []
    for index in sorted(range(len(row)), key=lambda index: (row[index].price, row[index].loss)):
        if hull and row[index].loss >= row[hull[-1]].loss:
            continue
        while len(hull) > 1 and _gain(row, hull[-2], hull[-1]) <= _gain(row, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _gain(row: list[_Choice], old: int, new: int) -> float:
    price = row[new].price - row[old].price
    return (row[old].loss - row[new].loss) / price if price > 0 else float("inf")


def _steps(choices: list[list[_Choice]], hulls: list[list[int]]) -> list[_Step]:
    return [
        _Step(_gain(row, old, new), tensor, new, row[new].price - row[old].price)
        for tensor, (row, hull) in enumerate(zip(choices, hulls, strict=True))
        for old, new in pairwise(hull)
    ]


def _fill(choices: list[list[_Choice]], chosen: list[int], left: float) -> list[int]:
    """Change one tensor after the other while what is left pays for a smaller loss, the largest saving first."""
    while True:
        moves = [
            (row[chosen[tensor]].loss - choice.loss, tensor, index)
            for tensor, row in enumerate(choices)
            for index, choice in enumerate(row)
            if choice.loss < row[chosen[tensor]].loss and choice.price - row[chosen[tensor]].price <= left
        ]
        if not moves:
            return chosen
        _, tensor, index = max(moves, key=lambda move: move[0])
        left -= choices[tensor][index].price - choices[tensor][chosen[tensor]].price
        chosen[tensor] = index
