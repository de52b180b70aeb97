"""Sizes and numbers that the rules of operators foresee, against what ONNX Runtime makes of random inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
from lensmith.runtimes.graph_limits.graph_values import Refused, constant
from lensmith.runtimes.graph_limits.graph_work import Values, Walk
from lensmith.runtimes.graph_limits.monomials import Scale
from lensmith.runtimes.graph_limits.onnx_messages import parse_model
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="needs lensmith[export]")
Array = NDArray[Any]
DRAWS = 30  # of each operator


class Node(NamedTuple):
    """One operator with its inputs, None for one that is left out."""

    kind: str
    inputs: list[Array | None]
    attributes: dict[str, Any] = {}  # noqa: RUF012
    outputs: int = 1
    domain: str = ""
    bound: bool = False  # its sizes follow from values: only bounds are known


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


class Draw:
    """Random arrays and places in them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def sizes(self, rank: int | None = None) -> tuple[int, ...]:
        return tuple(self.random.integers(1, 5, rank or self.random.integers(1, 5)).tolist())

    def floats(self, *sizes: int) -> Array:
        return self.random.normal(size=sizes or self.sizes()).astype(np.float32)

    def whole(self, *sizes: int) -> Array:
        return self.random.integers(-9, 10, sizes or self.sizes()).astype(np.int64)

    def one(self, count: int) -> int:
        return int(self.random.integers(count))

    def axes(self, rank: int) -> list[int]:
        """Some of the axes, in any order, counted from either side."""
        some = self.random.permutation(rank)[: 1 + self.one(rank)]
        return [int(axis) - rank * self.one(2) for axis in some]

    def stretched(self) -> tuple[Array, Array]:
        """Whole numbers of which some axes are stretched, and the ranks may differ."""
        sizes = self.sizes()
        made = [tuple(1 if self.one(3) == 0 else size for size in sizes)[self.one(2) * self.one(len(sizes)) :]
                for _ in range(2)]  # fmt: skip
        return self.whole(*made[0]), self.whole(*made[1])


def _shape(draw: Draw) -> Node:
    x = draw.floats()
    return Node("Shape", [x], [{}, {"start": 1}, {"end": -1}, {"start": -2, "end": x.ndim}][draw.one(4)])


def _reshape(draw: Draw) -> Node:
    sizes = draw.sizes(3)
    shapes = [(-1,), (0, -1), (sizes[0] * sizes[1], -1), (0, 0, -1), (sizes[2], -1, sizes[0]), (-1, 1, 0),
              (1, *sizes, -1), sizes[::-1]]  # fmt: skip
    shape = shapes[draw.one(len(shapes))]
    if shape == (-1, 1, 0):
        sizes = sizes[:3]
    return Node("Reshape", [draw.floats(*sizes), ints(*shape)])


def _transpose(draw: Draw) -> Node:
    x = draw.floats()
    return Node("Transpose", [x], {"perm": draw.random.permutation(x.ndim).tolist()} if draw.one(3) else {})


def _unsqueeze(draw: Draw) -> Node:
    x = draw.floats(*draw.sizes(2))
    return Node("Unsqueeze", [x, ints(*[[0], [-1], [1, 3], [2, 0], [-2]][draw.one(5)])])


def _squeeze(draw: Draw) -> Node:
    x = draw.floats(1, 3, 1, 2, 1)
    return Node("Squeeze", [x, [ints(0), ints(-1, 2), ints(4, 0)][draw.one(3)]])


def _concat(draw: Draw) -> Node:
    sizes = list(draw.sizes())
    axis, parts = draw.one(len(sizes)), []
    for _ in range(1 + draw.one(3)):
        sizes[axis] = 1 + draw.one(4)
        parts.append(draw.whole(*sizes))
    return Node("Concat", [*parts], {"axis": axis - len(sizes) * draw.one(2)})


def _split(draw: Draw) -> Node:
    x = draw.floats(3, 7, 2)
    if draw.one(2):
        return Node("Split", [x, ints(1, 4, 2)], {"axis": -2}, 3)
    return Node("Split", [draw.floats(3, 6, 2)], {"axis": 1, "num_outputs": 3}, 3)


def _slice(draw: Draw) -> Node:
    if draw.one(2):
        x, begin, end = draw.whole(6), draw.one(4) - 2, draw.one(7) - 2
        return Node("Slice", [x, ints(begin), ints(end), *([ints(0)] if draw.one(2) else [])])
    x = draw.floats(4, 5, 3)
    axes = draw.axes(3)
    starts, ends = ([draw.one(7) - 3 for _ in axes] for _ in range(2))
    ends = [end if draw.one(2) else 1 << 40 for end in ends]
    return Node("Slice", [x, ints(*starts), ints(*ends), ints(*axes)])


def _gather(draw: Draw) -> Node:
    if draw.one(2):
        x = draw.whole(6)
        return Node("Gather", [x, ints(*draw.random.integers(-6, 6, 1 + draw.one(3)))], {"axis": 0})
    x, axis = draw.floats(3, 4, 2), draw.one(3)
    return Node("Gather", [x, draw.random.integers(0, x.shape[axis], draw.sizes(2))], {"axis": axis - 3 * draw.one(2)})


def _expand(draw: Draw) -> Node:
    one, other = draw.stretched()
    return Node("Expand", [one, ints(*other.shape)])


def _range(draw: Draw) -> Node:
    start = draw.one(3)
    return Node("Range", [*map(np.array, (start, start + draw.one(9), 1))], bound=start > 0)


def _pad(draw: Draw) -> Node:
    x = draw.floats(2, 3)
    return Node("Pad", [x, ints(*draw.random.integers(0, 3, 4)), np.array(0, np.float32)])


def _reduce(draw: Draw) -> Node:
    kind = ["ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean"][draw.one(5)]
    x = draw.whole() if draw.one(2) and kind != "ReduceMean" else draw.floats()
    axes = [ints(*draw.axes(x.ndim))] if draw.one(2) else []
    return Node(kind, [x, *axes], {"keepdims": draw.one(2)})


def _of_two(draw: Draw) -> Node:
    kind = ["Add", "Sub", "Mul", "Max", "Min"][draw.one(5)]
    return Node(kind, [*draw.stretched()])


def _quotient(draw: Draw) -> Node:
    one, other = draw.stretched()
    return Node("Div", [np.abs(one), np.abs(other) + 1])


def _alone(draw: Draw) -> Node:
    kind = ["Neg", "Identity", "Cast"][draw.one(3)]
    return Node(kind, [draw.whole()], {"to": 6} if kind == "Cast" else {})


def _where(draw: Draw) -> Node:
    one, other = draw.stretched()
    return Node("Where", [one > 0, one, other])


def _matmul(draw: Draw) -> Node:
    m, k, n = draw.sizes(3)
    batch = draw.sizes(2)
    return Node("MatMul", [draw.floats(*batch, m, k), draw.floats(*batch[draw.one(3) :], k, n)])


def _fused_matmul(draw: Draw) -> Node:
    m, k, n = draw.sizes(3)
    turned = draw.one(2), draw.one(2)
    one, other = draw.floats(2, m, k), draw.floats(2, k, n)
    given = [x.swapaxes(1, 2) if turn else x for x, turn in zip((one, other), turned, strict=True)]
    return Node("FusedMatMul", [*given], {"transA": turned[0], "transB": turned[1]}, domain="com.microsoft")


def _non_zero(draw: Draw) -> Node:
    return Node("NonZero", [draw.whole()], bound=True)


DRAWN: tuple[Callable[[Draw], Node], ...] = (
    _shape, _reshape, _transpose, _unsqueeze, _squeeze, _concat, _split, _slice, _gather, _expand, _range, _pad,
    _reduce, _of_two, _quotient, _alone, _where, _matmul, _fused_matmul, _non_zero,
)  # fmt: skip


def graph_of(node: Node) -> Any:
    names = [f"x{index}" if x is not None else "" for index, x in enumerate(node.inputs)]
    outputs = [f"y{index}" for index in range(node.outputs)]
    made = onnx.helper.make_node(node.kind, names, outputs, domain=node.domain, **node.attributes)
    tensors = [onnx.numpy_helper.from_array(np.array(x, order="C"), name)
               for name, x in zip(names, node.inputs, strict=True) if x is not None]  # fmt: skip
    ports = [onnx.ValueInfoProto(name=name) for name in outputs]
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([made], "g", [], ports, tensors)
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def made_by_onnxruntime(model: Any) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    made: list[Array] = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {})
    return made


@pytest.mark.parametrize("rule", DRAWN, ids=lambda rule: rule.__name__.strip("_"))
def test_results_are_as_foreseen(rule: Callable[[Draw], Node]) -> None:
    for seed in range(DRAWS):
        node = rule(Draw(seed))
        model = graph_of(node)
        graph, scale = parse_model(model.SerializeToString()).graph, Scale({}, 1)
        values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
        Walk({}, scale).run(graph.node, values)
        for index, found in enumerate(made_by_onnxruntime(model)):
            known = values[f"y{index}".encode()]
            assert known is not None
            sizes = [scale.value(size) for size in known.dims]
            if node.bound:
                assert len(sizes) == found.ndim
                assert all(size <= bound for size, bound in zip(found.shape, sizes, strict=True)), node
            else:
                assert sizes == list(found.shape), node
            largest = known.largest(scale)
            if found.size and largest is not None:
                assert np.abs(found).max() <= scale.value(largest), node
            if known.numbers is not None and all(number.exact for number in known.numbers):
                assert [number.factor for number in known.numbers] == found.ravel().tolist(), node


@pytest.mark.parametrize(("bits", "columns"), [(2, 20), (4, 10), (8, 5), (16, 5), (None, 10)])
def test_rows_of_a_packed_table_are_as_wide_as_their_values(bits: int | None, columns: int) -> None:
    attributes = {} if bits is None else {"bits": bits}
    node = Node(
        "GatherBlockQuantized", [np.ones((3, 5), np.uint8), ints(0, 2), np.ones((3, 1), np.float32)], attributes
    )
    graph, scale = parse_model(graph_of(node).SerializeToString()).graph, Scale({}, 1)
    values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
    Walk({}, scale).run(graph.node, values)
    known = values[b"y0"]
    assert known is not None
    assert [scale.value(size) for size in known.dims] == [2, columns]


@pytest.mark.parametrize("kind", ["MatMulNBits", "MatMulInt4"])
def test_products_of_packed_weights_say_their_width(kind: str) -> None:
    node = Node(kind, [np.ones((2, 3, 8), np.float32), np.ones((5, 1, 4), np.uint8)], {"N": 5, "K": 8})
    graph, scale = parse_model(graph_of(node).SerializeToString()).graph, Scale({}, 1)
    values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
    work = Walk({}, scale).run(graph.node, values)
    known = values[b"y0"]
    assert known is not None
    assert [scale.value(size) for size in known.dims] == [2, 3, 5]
    assert work.total(scale) == 2 * 3 * 5 * 8 + 2 * 3 * 5  # and the values that are written


def test_products_of_one_input_say_their_widths() -> None:
    weights: list[Array | None] = [np.ones(shape, np.uint8) for shape in ((5, 1, 4), (5, 1), (7, 1, 4), (7, 1))]
    node = Node("TwoMatMulInt4", [np.ones((2, 3, 8), np.float32), *weights], {"N1": 5, "N2": 7, "K": 8}, 2)
    graph, scale = parse_model(graph_of(node).SerializeToString()).graph, Scale({}, 1)
    values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
    work = Walk({}, scale).run(graph.node, values)
    known = [values[b"y0"], values[b"y1"]]
    assert [[scale.value(size) for size in value.dims] for value in known if value] == [[2, 3, 5], [2, 3, 7]]
    assert work.total(scale) == 2 * 3 * 12 * 8 + 2 * 3 * 12


def test_products_behind_a_norm_say_their_widths_and_its_sum() -> None:
    weights: list[Array | None] = [np.ones(shape, np.uint8) for shape in ((5, 1, 4), (5, 1), (7, 1, 4), (7, 1))]
    x, row = np.ones((2, 3, 8), np.float32), np.ones(8, np.float32)
    node = Node("SkipRmsNormTwoMatMulInt4", [x, x, row, *weights], {"N1": 5, "N2": 7, "K": 8}, 3)
    graph, scale = parse_model(graph_of(node).SerializeToString()).graph, Scale({}, 1)
    values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
    work = Walk({}, scale).run(graph.node, values)
    known = [values[name] for name in (b"y0", b"y1", b"y2")]
    assert [[scale.value(size) for size in value.dims] for value in known if value] == [[2, 3, 5], [2, 3, 7], [2, 3, 8]]
    assert work.total(scale) == 2 * 3 * 12 * 8 + 2 * 3 * (12 + 8)


def test_signed_weights_behind_a_gate() -> None:
    x = np.ones((2, 3, 8), np.float32)
    node = Node("GatedSigmoidMatMulInt8Rows", [x, x, np.ones((5, 8), np.int8), np.ones(5, np.float16)])
    graph, scale = parse_model(graph_of(node).SerializeToString()).graph, Scale({}, 1)
    values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
    Walk({}, scale).run(graph.node, values)
    known = values[b"y0"]
    assert known is not None
    assert [scale.value(size) for size in known.dims] == [2, 3, 5]


F = np.ones((2, 3), np.float32)
WRONG: dict[str, tuple[Node, str]] = {
    "an axis twice": (Node("Transpose", [F], {"perm": [0, 0]}), "a Transpose by"),
    "fewer axes": (Node("Transpose", [F], {"perm": [0]}), "a Transpose by"),
    "a new axis twice": (Node("Unsqueeze", [F, ints(0, 0)]), "an Unsqueeze of one axis twice"),
    "an axis behind": (Node("Unsqueeze", [F, ints(3)]), r"its Unsqueeze has the axes \[3\] of 3"),
    "an axis before": (Node("Squeeze", [F, ints(-3)]), r"its Squeeze has the axes \[-3\] of 2"),
    "axes of another": (Node("ReduceSum", [F, ints(2)]), r"its ReduceSum has the axes \[2\] of 2"),
    "different ranks": (Node("Concat", [F, F[0]], {"axis": 0}), "a Concat of values of different ranks"),
    "no ranks": (Node("Concat", [F[0, 0], F[0, 0]], {"axis": 0}), "a Concat of values of different ranks"),
    "another axis": (Node("Concat", [F, F], {"axis": 2}), "its Concat has the axis 2 of 2"),
    "fewer parts": (Node("Split", [F, ints(1, 2)], {"axis": 1}, 3), "a Split into 2 parts with 3 outputs"),
    "parts below zero": (Node("Split", [F, ints(4, -1)], {"axis": 1}, 2), "a Split into 2 parts"),
    "steps": (Node("Slice", [F, ints(0), ints(9), ints(0), ints(2)]), "a Slice with steps"),
    "more axes": (Node("Slice", [F, ints(0, 0, 0), ints(1, 1, 1)]), "a Slice of more axes"),
    "fewer borders": (Node("Pad", [F, ints(1, 1)]), "a Pad of 2 numbers for 2 axes"),
    "borders of axes": (Node("Pad", [F, ints(1, 1, 1, 1), F[0, 0], ints(0)]), "a Pad of 4 numbers for 2 axes"),
    "no steps": (Node("Range", [ints(0), ints(9), ints(0)]), "a Range with steps of nothing"),
    "two ends": (Node("Range", [ints(0), ints(9, 9), ints(1)]), "a Range with steps of nothing"),
    "a size below zero": (Node("Reshape", [F, ints(-2, 3)]), "a Reshape to negative sizes"),
    "any size": (Node("Reshape", [F, F[0]]), "a Reshape from numbers that have no bound"),
    "any axis": (Node("Squeeze", [F, F[0]]), "axes of Squeeze that are not constants"),
    "a vector": (Node("MatMul", [F[0], F.T]), "a MatMul of vectors"),
    "another vector": (Node("MatMul", [F, F[0]]), "a MatMul of vectors"),
    "no outputs": (Node("MatMulNBits", [F, F], {"N": 0, "K": 3}), "its MatMulNBits has no sizes"),
    "no columns": (Node("MatMulNBits", [F, F], {"N": 3, "K": 0}), "its MatMulNBits has no sizes"),
    "flat queries": (Node("MultiHeadAttention", [F, F, F]), "a MultiHeadAttention of another form"),
    "other keys": (Node("MultiHeadAttention", [F[None], F, F[None]]), "a MultiHeadAttention of another form"),
    "a cache": (Node("MultiHeadAttention", [F[None]] * 7), "a MultiHeadAttention of another form"),
    "more results": (Node("MultiHeadAttention", [F[None]] * 3, {}, 2), "a MultiHeadAttention of another form"),
    "flat caches": (Node("GroupQueryAttention", [F[None]] * 7), "a GroupQueryAttention of another form"),
    "columns of a table": (Node("GatherBlockQuantized", [F, ints(0), F], {"gather_axis": 1}), "along another axis"),
    "a lost input": (Node("Add", [F]), "its Add lacks an input"),
    "an input left out": (Node("Add", [F, None]), "its Add lacks an input"),
    "two sums": (Node("Add", [F, F], {}, 2), "its Add has 2 outputs"),
    "two constants": (Node("Constant", [], {"value_int": 1, "value_float": 2.0}), "a Constant of several values"),
    "a constant text": (Node("Constant", [], {"value_string": "a"}), "a Constant with the attribute 'value_string'"),
    "many sizes": (Node("Unsqueeze", [F, ints(*range(7))]), "a result of Unsqueeze has 9 sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_nodes_that_have_no_bounds_are_refused(case: str) -> None:
    node, words = WRONG[case]
    graph = parse_model(graph_of(node).SerializeToString()).graph
    values: Values = {tensor.name: constant(tensor) for tensor in graph.initializer}
    with pytest.raises(Refused, match=words):
        Walk({}, Scale({}, 1)).run(graph.node, values)
