"""Numbers that decide over sizes in graphs, and the largest values, constants and work that are taken, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lensmith.runtimes.graph_limits.graph_bounds import FREE_VALUES, DeclaredGraph, check_bounds
from lensmith.runtimes.graph_limits.graph_check import _check_product
from lensmith.runtimes.graph_limits.graph_values import Refused, constant, inputs
from lensmith.runtimes.graph_limits.graph_work import Values, Walk
from lensmith.runtimes.graph_limits.monomials import Scale
from lensmith.runtimes.graph_limits.onnx_messages import parse_model

onnx = pytest.importorskip("onnx", reason="needs lensmith[export]")
TOKENS = 100
SIZES = {"tokens": TOKENS, "image tokens": TOKENS, "patches": TOKENS, "capacity": TOKENS, "merge": 1}
Node = tuple[str, list[str], str]


def graph(nodes: list[Node], constants: dict[str, list[int]], **attributes: Any) -> Any:
    """A graph whose input hidden_states is [1, seq, 1] and num_logits [1]; x is the sizes of the one."""
    make = onnx.helper
    nodes = [("Shape", ["hidden_states"], "x"), *nodes]
    made = [make.make_node(kind, given, [output], **(attributes if kind != "Shape" else {}))
            for kind, given, output in nodes]  # fmt: skip
    tensors = [make.make_tensor(name, 7, [len(values)], values) for name, values in constants.items()]
    ports = [make.make_tensor_value_info("hidden_states", 1, [1, "seq", 1]),
             make.make_tensor_value_info("num_logits", 7, [1])]  # fmt: skip
    return parse_model(make.make_model(make.make_graph(made, "g", ports, [], tensors)).SerializeToString()).graph


def largest(made: Any, name: bytes) -> float | None:
    """The bound of the numbers in a value."""
    values: Values = {tensor.name: constant(tensor) for tensor in made.initializer}
    values |= {port.encode(): known for port, known in inputs(made, "capacity")}
    scale = Scale(SIZES, TOKENS)
    Walk({}, scale).run(made.node, values)
    known = values[name]
    assert known is not None
    found = known.largest(scale)
    return None if found is None else scale.value(found)


# A number over the length of what a slice leaves.
BY_LENGTH = [
    ("Slice", ["hidden_states", "v", "e", "o"], "s"),
    ("Shape", ["s"], "sizes"),
    ("Gather", ["sizes", "o"], "left"),
    ("Div", ["a", "left"], "n"),
]
NUMBERS: dict[str, tuple[list[Node], dict[str, list[int]], float | None]] = {
    "a constant": ([], {"n": [7]}, 7),
    "a negative constant": ([], {"n": [-7]}, 7),
    "the largest of a constant": ([("Gather", ["a", "x"], "n")], {"a": [1, 9, 1]}, 9),
    "a long constant": ([], {"n": [1] * 100 + [-9]}, 9),
    "a product": ([("Mul", ["a", "b"], "n")], {"a": [8], "b": [9]}, 72),
    "a sum": ([("Add", ["a", "b"], "n")], {"a": [8], "b": [9]}, 17),
    "a sum below zero": ([("Add", ["a", "b"], "n")], {"a": [-8], "b": [-9]}, 17),
    "a sum of a size": ([("Add", ["x", "b"], "n")], {"b": [9]}, TOKENS + 9),
    "a difference": ([("Sub", ["a", "b"], "n")], {"a": [8], "b": [-9]}, 17),
    "a difference of a size": ([("Sub", ["x", "b"], "n")], {"b": [9]}, TOKENS),
    "a difference to below zero": ([("Sub", ["x", "b"], "n")], {"b": [TOKENS + 9]}, TOKENS + 9),
    "a difference from below zero": ([("Neg", ["x"], "m"), ("Sub", ["m", "b"], "n")], {"b": [9]}, TOKENS + 9),
    "the larger of two": ([("Max", ["a", "b"], "n")], {"a": [1], "b": [9]}, 9),
    "the smaller of two": ([("Min", ["num_logits", "b"], "n")], {"b": [9]}, 9),
    "the smaller of two, one below zero": ([("Min", ["a", "b"], "n")], {"a": [-80], "b": [9]}, 80),
    "the smaller of what may be below zero": (
        [("Sub", ["num_logits", "b"], "d"), ("Min", ["d", "b"], "n")],
        {"b": [9]},
        TOKENS + 9,
    ),
    "the larger of two below zero": ([("Max", ["a", "b"], "m"), ("Sub", ["b", "m"], "n")], {"a": [-8], "b": [-9]}, 1),
    "a length to a place from behind": (
        [
            ("Min", ["num_logits", "t"], "m"),
            ("Sub", ["m", "f"], "e"),
            ("Slice", ["hidden_states", "z", "e", "o"], "s"),
            ("Shape", ["s"], "n"),
        ],
        {"t": [2], "f": [10], "z": [0], "o": [1]},
        TOKENS,
    ),
    "a length between places of two kinds": (
        [
            ("Min", ["num_logits", "t"], "m"),
            ("Sub", ["m", "f"], "d"),
            ("Add", ["v", "d"], "e"),
            ("Slice", ["hidden_states", "v", "e", "o"], "s"),
            ("Shape", ["s"], "n"),
        ],
        {"t": [2], "f": [10], "v": [5], "o": [1]},
        TOKENS,
    ),
    "a length of some steps": (
        [
            ("Min", ["num_logits", "t"], "m"),
            ("Add", ["v", "m"], "e"),
            ("Slice", ["hidden_states", "v", "e", "o"], "s"),
            ("Shape", ["s"], "n"),
        ],
        {"t": [2], "v": [5], "o": [1]},
        2,
    ),
    "as many as what is left, which may be few": (
        [
            ("Concat", ["num_logits", "m"], "s"),
            ("Reshape", ["hidden_states", "s"], "r"),
            ("Shape", ["r"], "sizes"),
            ("Gather", ["sizes", "o"], "left"),
            ("Div", ["a", "left"], "q"),
            ("Mul", ["q", "x"], "n"),
        ],
        {"m": [-1], "o": [1], "a": [900]},
        900 * TOKENS,
    ),
    "a quotient by a length from behind": (
        BY_LENGTH,
        {"v": [-10], "e": [1 << 31], "o": [1], "a": [900]},
        900,
    ),
    "a quotient by a length of some places": (
        BY_LENGTH,
        {"v": [2], "e": [10], "o": [1], "a": [900]},
        900,
    ),
    "a quotient by a length up to a place": (
        BY_LENGTH,
        {"v": [0], "e": [10], "o": [1], "a": [900]},
        900,
    ),
    "a quotient by a length up to a place from behind": (
        BY_LENGTH,
        {"v": [0], "e": [-90], "o": [1], "a": [900]},
        900,
    ),
    "a quotient by a length behind a place": (
        BY_LENGTH,
        {"v": [90], "e": [1 << 31], "o": [1], "a": [900]},
        900,
    ),
    "one behind another": ([("Concat", ["a", "b"], "n")], {"a": [1], "b": [9]}, 9),
    "one of two": ([("Where", ["a", "a", "b"], "n")], {"a": [8], "b": [9]}, 9),
    "the other of two": ([("Where", ["a", "b", "a"], "n")], {"a": [8], "b": [9]}, 9),
    "a quotient": ([("Div", ["a", "b"], "n")], {"a": [9], "b": [2]}, 4),
    "a quotient by a size": ([("Div", ["a", "num_logits"], "n")], {"a": [9]}, 9),
    "a quotient of a size": ([("Div", ["num_logits", "b"], "n")], {"b": [8]}, TOKENS / 8),
    "a size": ([("Identity", ["x"], "n")], {}, TOKENS),
    "the square of a size": ([("Mul", ["x", "x"], "n")], {}, TOKENS**2),
    "what wraps around": ([("Mul", ["a", "a"], "n")], {"a": [1 << 31]}, None),
    "what is just below": ([("Mul", ["a", "a"], "n")], {"a": [1 << 30]}, 1 << 60),
    "what is not known": ([("Cast", ["hidden_states"], "n")], {}, None),
    "a sum with what is not known": ([("Cast", ["hidden_states"], "s"), ("Add", ["a", "s"], "n")], {"a": [1]}, None),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_bounds_of_numbers(case: str) -> None:
    nodes, constants, expected = NUMBERS[case]
    attributes = {"axis": 0} if nodes and nodes[-1][0] in ("Concat", "Gather") else {}
    if any(kind == "Cast" for kind, *_ in nodes):
        attributes["to"] = 7
    assert largest(graph(nodes, constants, **attributes), b"n") == expected


# 100 tokens of one number, in a file without weights: values up to FREE_VALUES, and twice a row of three for each.
LIMIT = FREE_VALUES + 2 * 3 * TOKENS
RESULTS: dict[str, tuple[list[Node], dict[str, list[int]], str]] = {
    "a copy": ([("Expand", ["hidden_states", "a"], "y")], {"a": [LIMIT // TOKENS, 1, 1]}, ""),
    "a larger copy": ([("Expand", ["hidden_states", "a"], "y")], {"a": [LIMIT // TOKENS + 1, 1, 1]}, "of Expand"),
    "a range": ([("Range", ["z", "num_logits", "o"], "y")], {"z": [0], "o": [1]}, ""),
    "a constant": ([("Range", ["z", "a", "o"], "y")], {"z": [0], "a": [FREE_VALUES], "o": [1]}, ""),
    "a larger one": ([("Range", ["z", "a", "o"], "y")], {"z": [0], "a": [FREE_VALUES + 1], "o": [1]}, "the same"),
    "two of them": ([("Range", ["z", "a", "o"], "y"), ("Range", ["z", "a", "o"], "y2"),
                     ("Mul", ["num_logits", "y"], "w"), ("Mul", ["num_logits", "y2"], "v")],
                    {"z": [0], "a": [FREE_VALUES // 2 + 1], "o": [1]}, "the same"),
    "a range without steps": ([("Range", ["z", "o", "z"], "y")], {"z": [0], "o": [1]}, "steps of nothing"),
    "a circle": ([("Identity", ["n"], "m"), ("Identity", ["m"], "n")], {}, "in front of its use"),
}  # fmt: skip


@pytest.mark.parametrize("case", RESULTS)
def test_results_that_are_taken_and_refused(case: str) -> None:
    nodes, constants, refusal = RESULTS[case]
    made = graph(nodes, constants)
    declared = DeclaredGraph(TOKENS, TOKENS)
    if not refusal:
        check_bounds(made, [], declared, 0)
        return
    with pytest.raises(Refused, match=refusal):
        check_bounds(made, [], declared, 0)


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
