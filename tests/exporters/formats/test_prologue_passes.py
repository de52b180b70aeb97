"""Which norms and activations become prologues of products: those that nothing else reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.formats.onnx.joined_products import join_products
from lensmith.exporters.formats.onnx.prologues import fuse_prologues

from tests.exporters.formats.test_joined_products import INPUTS, Array, answers, of_one_input, product
from tests.helpers.native import need

MS = "com.microsoft"
Maker = Callable[[ir.Graph, ir.Value], ir.Value]


def weight(graph: ir.Graph, name: str) -> ir.Value:
    values = np.random.default_rng(len(name)).normal(size=INPUTS).astype(np.float32)
    made = ir.Value(name=name, const_value=ir.tensor(values))
    graph.register_initializer(made)
    return made


def norm(graph: ir.Graph, x: ir.Value, kind: str = "SkipSimplifiedLayerNormalization") -> ir.Value:
    """Of x and x, with the sum as an output of the graph."""
    names = ("weight", "bias") if kind == "SkipLayerNormalization" else ("weight",)
    inputs = [x, x, *(weight(graph, name) for name in names)]
    node = ir.node(kind, inputs, {"epsilon": 1e-5}, domain=MS, num_outputs=4)
    graph.append(node)
    node.outputs[3].name, node.outputs[3].type = "total", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(node.outputs[3])
    return node.outputs[0]


def node_of(graph: ir.Graph, kind: str, *inputs: ir.Value, domain: str = MS, **attributes: float) -> ir.Value:
    node = ir.node(kind, list(inputs), attributes, domain=domain)
    graph.append(node)
    return node.outputs[0]


def doubled(graph: ir.Graph, x: ir.Value) -> ir.Value:
    return node_of(graph, "Add", x, x, domain="")


MAKERS: dict[str, tuple[Maker, int]] = {
    "SkipRmsNormThree": (norm, 3),
    "SkipLayerNorm": (lambda graph, x: norm(graph, x, "SkipLayerNormalization"), 1),
    "Gelu": (lambda graph, x: node_of(graph, "Gelu", x), 1),
    "FastGelu": (lambda graph, x: node_of(graph, "FastGelu", x), 1),
    "QuickGelu": (lambda graph, x: node_of(graph, "QuickGelu", x, alpha=1.702), 1),
    "GatedQuickGelu": (
        lambda graph, x: node_of(graph, "Mul", node_of(graph, "QuickGelu", x, alpha=1.0), doubled(graph, x), domain=""),
        1,
    ),
    "GatedSigmoid": (
        lambda graph, x: node_of(graph, "Mul", doubled(graph, x), node_of(graph, "Sigmoid", x, domain=""), domain=""),
        1,
    ),
}


def graph_of(make: Maker, count: int) -> ir.Graph:
    graph = of_one_input()
    made = make(graph, graph.inputs[0])
    for _ in range(count):
        product(graph, 7, x=made)
    return graph


def fused(graph: ir.Graph) -> Counter[str]:
    join_products(graph)
    fuse_prologues(graph)
    return Counter(node.op_type for node in graph if node.op_type != "Add")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_prologue_is_one_with_its_product(name: str, *, native: bool) -> None:
    """An input at a border between two levels may be rounded to the other one: 1/127 of the largest, times a weight."""
    need("MatMulInt4")
    graph = graph_of(*MAKERS[name])
    each, names = answers(graph.clone(), native=native), [value.name for value in graph.outputs]
    assert fused(graph) == {f"{name}MatMulInt4": 1}
    assert [value.name for value in graph.outputs] == names
    for made, wanted in zip(answers(graph, native=native), each, strict=True):
        np.testing.assert_allclose(made, wanted, atol=0.01 * np.abs(wanted).max())


def test_norm_that_more_reads_stays() -> None:
    graph = graph_of(norm, 1)
    product(graph, 7, bits=8, zeros=False, x=graph[0].outputs[0])
    assert fused(graph) == {"SkipSimplifiedLayerNormalization": 1, "MatMulInt4": 1, "MatMulInt8": 1}


def test_norm_that_is_an_output_stays() -> None:
    graph = graph_of(norm, 1)
    graph[0].outputs[0].name, graph[0].outputs[0].type = "normed", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(graph[0].outputs[0])
    assert fused(graph) == {"SkipSimplifiedLayerNormalization": 1, "MatMulInt4": 1}


def test_norm_in_front_of_logits_stays() -> None:
    graph = graph_of(norm, 1)
    graph[1].outputs[0].name = "logits"
    assert fused(graph) == {"SkipSimplifiedLayerNormalization": 1, "MatMulInt4": 1}


def test_norm_whose_deviation_is_asked_for_stays() -> None:
    graph = graph_of(norm, 1)
    deviation = graph[0].outputs[2]
    deviation.name, deviation.type = "deviation", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(deviation)
    assert fused(graph) == {"SkipSimplifiedLayerNormalization": 1, "MatMulInt4": 1}


def test_gate_that_more_reads_stays() -> None:
    graph = graph_of(*MAKERS["GatedSigmoid"])
    opened = next(node.outputs[0] for node in graph if node.op_type == "Sigmoid")
    product(graph, 7, x=opened)
    assert fused(graph) == {"Sigmoid": 1, "Mul": 1, "MatMulInt4": 2}


def test_activation_of_several_products_stays() -> None:
    assert fused(graph_of(MAKERS["Gelu"][0], 2)) == {"Gelu": 1, "TwoMatMulInt4": 1}


def test_readers_of_the_sum_stand_behind_it() -> None:
    graph = graph_of(norm, 1)
    total = graph[0].outputs[3]
    reader = ir.node("Neg", [total])
    graph.insert_after(graph[0], reader)
    reader.outputs[0].name, reader.outputs[0].type = "read", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(reader.outputs[0])
    assert fused(graph) == {"SkipRmsNormMatMulInt4": 1, "Neg": 1}
    found: Array = answers(graph, native=False)[-1]
    x = np.random.default_rng(0).normal(size=(3, INPUTS)).astype(np.float32)
    np.testing.assert_array_equal(found, -2 * x)
