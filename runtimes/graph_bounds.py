"""How large the integers become that decide over sizes and turns in a graph: bounds from constants and shapes.

Bounds, not values: what a graph computes from sizes of inputs is at most what its operators make of the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MOST_SIZE = 1 << 24  # of one dimension of a value, and of what the runtime feeds as numbers (lengths, grids, indices)
MOST_TURNS = 1 << 26  # of a loop
MOST_CONSTANT = 1 << 24  # values of a tensor that is the same whatever the inputs are
INTS = {2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}
Bound = tuple[int, bool]  # the largest magnitude, and whether it depends on inputs


class TooLarge(ValueError):
    """A size or a count in a graph that no model needs."""


def check_loops(graph: Any, constants: Mapping[str, Any]) -> None:
    """Raise TooLarge for a loop whose turns are not bounded by the sizes of its inputs."""
    values = _Integers(graph, constants)
    for node in graph.node:
        if node.op_type == b"Loop":
            first = _name(node, 0)
            bound = values.bound(first) if first else None
            if bound is None or bound[0] > MOST_TURNS:
                raise TooLarge(f"it has a Loop of {'any number of' if bound is None else bound[0]} turns")


def check_constants(graph: Any, constants: Mapping[str, Any]) -> None:
    """Raise TooLarge for a node that makes a large tensor of constants: a few bytes in the file, all of the memory."""
    values = _Integers(graph, constants)
    for node in graph.node:
        sizes = values.each(_name(node, 1)) if node.op_type in SIZED else []
        fixed = [size for size, varies in sizes if not varies]
        total = math.prod(max(size, 1) for size in fixed) if node.op_type == b"Expand" else max(fixed, default=0)
        if total > MOST_CONSTANT:
            raise TooLarge(f"it has {node.op_type.decode()} to {total} values")


SIZED = (b"Expand", b"Range", b"Pad")  # whose second input says how large the result is


class _Integers:
    """Bounds of the integer values of a graph, found where they are asked for."""

    def __init__(self, graph: Any, constants: Mapping[str, Any]) -> None:
        self.constants = constants
        self.inputs = {port.name.decode("utf-8", "replace") for port in graph.input}
        self.makers = {
            output.decode("utf-8", "replace"): node for node in graph.node for output in node.output if output
        }
        self.known: dict[str, Bound | None] = {}

    def bound(self, name: str, depth: int = 0) -> Bound | None:
        """The largest magnitude of a value; None where it is not known."""
        if name not in self.known:
            self.known[name] = None  # for cycles, which no valid graph has
            self.known[name] = self._bound(name, depth) if depth < 200 else None
        return self.known[name]

    def each(self, name: str) -> list[Bound]:
        """Of each number in a list of sizes that is a constant or a concatenation; else of the largest, once."""
        if name in self.constants:
            return [(abs(int(value)), False) for value in _numbers(self.constants[name])]
        node = self.makers.get(name)
        if node is not None and node.op_type == b"Concat":
            return [bound for index in range(len(node.input)) for bound in self.each(_name(node, index))]
        found = self.bound(name)
        return [(MOST_SIZE, True) if found is None else found]

    def _bound(self, name: str, depth: int) -> Bound | None:
        if name in self.constants:
            numbers = _numbers(self.constants[name])
            return (max((abs(int(value)) for value in numbers), default=0), False)
        if name in self.inputs:
            return MOST_SIZE, True
        node = self.makers.get(name)
        if node is None:
            return None
        kind = node.op_type.decode("utf-8", "replace")
        if kind in ("Shape", "NonZero"):
            return MOST_SIZE, True
        if kind not in RULES:
            return None
        places, rule = RULES[kind]
        given = [self.bound(_name(node, index), depth + 1) for index in range(len(node.input))[places]]
        known = [bound for bound in given if bound is not None]
        if len(known) < len(given) or not known:
            return None
        largest = rule([size for size, _ in known])
        return (largest, any(varies for _, varies in known)) if largest < 1 << 62 else None


# Which inputs the result depends on, and how its magnitude follows from theirs.
FIRST, ALL = slice(0, 1), slice(0, None)
Rule = Callable[[list[int]], int]
RULES: Mapping[str, tuple[slice, Rule]] = {
    **dict.fromkeys(("Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Cast", "CastLike", "Identity", "Split",
                     "Floor", "Ceil", "Div", "Expand", "Transpose", "ReduceMax", "ReduceMin", "Neg"), (FIRST, max)),
    **dict.fromkeys(("Concat", "Max", "Min"), (ALL, max)),
    **dict.fromkeys(("Add", "Sub"), (ALL, sum)),
    "Mul": (ALL, math.prod),
    "Mod": (slice(1, 2), max),
    "Where": (slice(1, 3), max),
}  # fmt: skip


def _numbers(tensor: Any) -> list[int]:
    """The integers of a small constant; of another one none."""
    if tensor.data_type not in INTS or tensor.data_location or math.prod(tensor.dims) > 4096:
        return []
    if tensor.HasField("raw_data"):
        return [int(value) for value in np.frombuffer(tensor.raw_data, INTS[tensor.data_type])]
    return [int(value) for value in (*tensor.int64_data, *tensor.int32_data)]


def _name(node: Any, index: int) -> str:
    return node.input[index].decode("utf-8", "replace") if index < len(node.input) else ""
