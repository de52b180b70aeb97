"""Turns of loops and sizes of constants in graphs: the largest that are taken, and those behind them, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lensmith.runtimes.graph_bounds import TooLarge, check_constants, check_loops
from lensmith.runtimes.graph_check import Refused, _check_product, _constants
from lensmith.runtimes.onnx_messages import parse_model

onnx = pytest.importorskip("onnx", reason="needs lensmith[export]")

TURNS, VALUES, SIZE = 1 << 26, 1 << 24, 1 << 24  # of a loop, of a constant tensor, of anything that an input decides
Node = tuple[str, list[str], str]


def graph(nodes: list[Node], constants: dict[str, Any]) -> Any:
    """A graph with the inputs x and flag."""
    make = onnx.helper
    made = [make.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    tensors = [make.make_tensor(name, 7, [len(values)], values) for name, values in constants.items()]
    ports = [make.make_tensor_value_info(name, kind, ["n"]) for name, kind in (("x", 7), ("flag", 9))]
    return parse_model(make.make_model(make.make_graph(made, "g", ports, [], tensors)).SerializeToString()).graph


LOOPS: dict[str, tuple[list[Node], dict[str, list[int]], bool]] = {
    "a constant": ([], {"n": [TURNS]}, True),
    "a larger constant": ([], {"n": [TURNS + 1]}, False),
    "a negative constant": ([], {"n": [-TURNS - 1]}, False),
    "the largest of a constant": ([("Gather", ["a", "x"], "n")], {"a": [1, TURNS + 1, 1]}, False),
    "a product": ([("Mul", ["a", "b"], "n")], {"a": [1 << 13], "b": [1 << 13]}, True),
    "a larger product": ([("Mul", ["a", "b"], "n")], {"a": [1 << 13], "b": [(1 << 13) + 1]}, False),
    "a sum": ([("Add", ["a", "b"], "n")], {"a": [1 << 25], "b": [1 << 25]}, True),
    "a larger sum": ([("Add", ["a", "b"], "n")], {"a": [1 << 25], "b": [(1 << 25) + 1]}, False),
    "a difference": ([("Sub", ["a", "b"], "n")], {"a": [1 << 25], "b": [-(1 << 25)]}, True),
    "a larger difference": ([("Sub", ["a", "b"], "n")], {"a": [1 << 25], "b": [-(1 << 25) - 1]}, False),
    "the larger of two": ([("Max", ["a", "b"], "n")], {"a": [1], "b": [TURNS + 1]}, False),
    "one behind another": ([("Concat", ["a", "b"], "n")], {"a": [1], "b": [TURNS + 1]}, False),
    "one of two": ([("Where", ["flag", "a", "b"], "n")], {"a": [TURNS], "b": [TURNS]}, True),
    "a larger first of two": ([("Where", ["flag", "a", "b"], "n")], {"a": [TURNS + 1], "b": [1]}, False),
    "a larger second of two": ([("Where", ["flag", "a", "b"], "n")], {"a": [1], "b": [TURNS + 1]}, False),
    "a remainder": ([("Mod", ["a", "b"], "n")], {"a": [1 << 40], "b": [TURNS]}, True),
    "a larger remainder": ([("Mod", ["a", "b"], "n")], {"a": [1], "b": [TURNS + 1]}, False),
    "a quotient": ([("Div", ["a", "b"], "n")], {"a": [TURNS], "b": [1]}, True),
    "a larger quotient": ([("Div", ["a", "b"], "n")], {"a": [TURNS + 1], "b": [1]}, False),
    "a size of an input": ([("Shape", ["x"], "s"), ("Mul", ["s", "a"], "n")], {"a": [TURNS // SIZE]}, True),
    "five of these": ([("Shape", ["x"], "s"), ("Mul", ["s", "a"], "n")], {"a": [TURNS // SIZE + 1]}, False),
    "an input": ([("Add", ["x", "x"], "n")], {}, True),
    "the square of an input": ([("Mul", ["x", "x"], "n")], {}, False),
    "what is not known": ([("ReduceSum", ["x"], "n")], {}, False),
    "a sum with what is not known": ([("ReduceSum", ["x"], "s"), ("Add", ["a", "s"], "n")], {"a": [1]}, False),
    "a circle": ([("Identity", ["n"], "m"), ("Identity", ["m"], "n")], {}, False),
    "nothing": ([], {}, False),
}


@pytest.mark.parametrize("case", LOOPS)
def test_turns_of_loops(case: str) -> None:
    nodes, constants, taken = LOOPS[case]
    made = graph([*nodes, ("Loop", ["n", ""], "y")], constants)
    if taken:
        check_loops(made, _constants(made))
        return
    with pytest.raises(TooLarge, match=r"a Loop of .* turns"):
        check_loops(made, _constants(made))


SIZES: dict[str, tuple[list[Node], dict[str, list[int]], bool]] = {
    "a copy": ([("Expand", ["x", "a"], "y")], {"a": [1 << 12, 1 << 12]}, True),
    "a larger copy": ([("Expand", ["x", "a"], "y")], {"a": [1 << 12, (1 << 12) + 1]}, False),
    "a copy of nothing": ([("Expand", ["x", "a"], "y")], {"a": [0, VALUES + 1]}, False),
    "a range": ([("Range", ["b", "a", "b"], "y")], {"a": [VALUES], "b": [1]}, True),
    "a larger range": ([("Range", ["b", "a", "b"], "y")], {"a": [VALUES + 1], "b": [1]}, False),
    "a border": ([("Pad", ["x", "a"], "y")], {"a": [0, VALUES]}, True),
    "a larger border": ([("Pad", ["x", "a"], "y")], {"a": [0, VALUES + 1]}, False),
    "a size of an input": ([("Expand", ["x", "s"], "y"), ("Shape", ["x"], "s")], {}, True),
    "sizes of both kinds": (
        [("Shape", ["x"], "s"), ("Concat", ["s", "a"], "t"), ("Expand", ["x", "t"], "y")], {"a": [VALUES]}, True),
    "larger sizes of both kinds": (
        [("Shape", ["x"], "s"), ("Concat", ["s", "a"], "t"), ("Expand", ["x", "t"], "y")], {"a": [VALUES + 1]}, False),
    "parts of a size": (
        [("Concat", ["a", "b"], "t"), ("Expand", ["x", "t"], "y")], {"a": [1 << 12], "b": [(1 << 12) + 1]}, False),
}  # fmt: skip


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_no_input_decides(case: str) -> None:
    nodes, constants, taken = SIZES[case]
    made = graph(nodes, constants)
    if taken:
        check_constants(made, _constants(made))
        return
    with pytest.raises(TooLarge, match=r"it has .* to \d+ values"):
        check_constants(made, _constants(made))


@pytest.mark.parametrize(
    ("dims", "fits"), [([5, 4, 16], True), ([5, 3, 16], False), ([5, 5, 16], False), ([4, 4, 16], False), ([5], False)]
)
def test_weights_of_a_product_have_the_size_that_it_says(dims: list[int], fits: bool) -> None:
    """100 inputs in blocks of 32: the last of four is not full."""
    sizes = {"K": 100, "N": 5, "block_size": 32}
    attributes = [SimpleNamespace(name=name.encode(), i=size) for name, size in sizes.items()]
    product = SimpleNamespace(op_type=b"MatMulNBits", input=[b"x", b"w"], attribute=attributes)
    if fits:
        _check_product(product, {"w": dims})
        return
    with pytest.raises(Refused, match="says N 5, K 100, blocks of 32"):
        _check_product(product, {"w": dims})
