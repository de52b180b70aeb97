"""Products of one input as one operator: the same bits, with lensmith's kernels and without them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from lensmith.exporters.formats.functions import add_functions
from lensmith.exporters.formats.onnx.joined_products import join_products
from lensmith.exporters.formats.onnx.native_operators import DOMAIN
from lensmith.exporters.formats.onnx.product_functions import JOINED
from lensmith.runtimes.engines.native import LIBRARY, wanted_instructions
from numpy.typing import NDArray

from tests.helpers.native import need

Array = NDArray[np.float32]
INPUTS = 96


def product(
    graph: ir.Graph,
    outputs: int,
    *,
    x: ir.Value | None = None,
    bits: int = 4,
    block: int = 32,
    zeros: bool = True,
    bias: bool = True,
) -> None:
    """One more product of x, or of the graph's first input, and an output of it."""
    place, blocks = len(graph.outputs), INPUTS // block
    draw = np.random.default_rng(place)

    def weight(name: str, values: Array) -> ir.Value:
        made = ir.Value(name=f"{name}_{place}", const_value=ir.tensor(values))
        graph.register_initializer(made)
        return made

    shape = (outputs, blocks, block * bits // 8) if bits >= 4 else (outputs, INPUTS * bits // 8)
    given: list[ir.Value | None] = [
        weight("B", draw.integers(0, 256, shape, np.uint8)),
        weight("scales", draw.normal(0, 0.1, (outputs, blocks)).astype(np.float16)),
        weight("zeros", draw.integers(0, 256, (outputs, (blocks + 1) // 2), np.uint8)) if zeros else None,
        weight("bias", draw.normal(size=outputs).astype(np.float32)) if bias else None,
    ]
    attributes = {"K": INPUTS, "N": outputs, "block_size": block}
    node = ir.node(f"MatMulInt{bits}", [x or graph.inputs[0], *given], attributes, domain=DOMAIN)
    node.outputs[0].name, node.outputs[0].type = f"y{place}", ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    graph.outputs.append(node.outputs[0])


def of_one_input() -> ir.Graph:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", INPUTS]))
    return ir.Graph([x], [], nodes=[], opset_imports={"": 21, "com.microsoft": 1}, name="products")


def kinds(graph: ir.Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph)


def answers(graph: ir.Graph, *, native: bool) -> list[Array]:
    model = ir.Model(graph, ir_version=10, functions=add_functions(graph))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if native:
        wanted_instructions(True)
        options.register_custom_ops_library(str(LIBRARY))
    given = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(3, INPUTS)).astype(np.float32)
    made: list[Array] = given.run(None, {"x": x})
    return made


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_joined_products_are_those_of_each(bits: int, count: int, *, native: bool) -> None:
    need(f"MatMulInt{bits}")
    graph = of_one_input()
    for place in range(count):
        product(graph, 5 + 61 * place, bits=bits, zeros=bits < 8, bias=place % 2 == 0)
    each, names = answers(graph.clone(), native=native), [value.name for value in graph.outputs]
    join_products(graph)
    assert kinds(graph) == {f"{JOINED[count]}MatMulInt{bits}": 1}
    assert [value.name for value in graph.outputs] == names
    for made, wanted in zip(answers(graph, native=native), each, strict=True):
        np.testing.assert_array_equal(made, wanted)


def test_only_products_that_are_alike_are_joined() -> None:
    graph = of_one_input()
    for other in ({}, {"bits": 8, "zeros": False}, {"zeros": False}, {"block": 16}, {"bits": 3}):
        product(graph, 5, **other)
    join_products(graph)
    assert kinds(graph) == {"MatMulInt4": 3, "MatMulInt8": 1, "MatMulInt3": 1}


def test_more_products_than_an_operator_has() -> None:
    graph = of_one_input()
    for _ in range(7):
        product(graph, 5)
    join_products(graph)
    assert kinds(graph) == {"FourMatMulInt4": 1, "ThreeMatMulInt4": 1}


def test_weights_that_are_made_by_nodes_are_left_alone() -> None:
    graph = of_one_input()
    for _ in range(2):
        product(graph, 5)
    copy = ir.node("Identity", [graph[0].inputs[2]])
    graph.insert_before(graph[0], copy)
    graph[1].replace_input_with(2, copy.outputs[0])
    join_products(graph)
    assert kinds(graph) == {"MatMulInt4": 2, "Identity": 1}
