"""Products with packed weights as the graphs of bundles have them: random groups, and a graph of one product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from lensmith.exporters.formats.functions import add_functions
from lensmith.exporters.formats.onnx.ort import OPSETS, OrtDialect
from lensmith.exporters.graphs.graph_files import IR_VERSIONS
from lensmith.exporters.graphs.graph_terms import Value
from lensmith.exporters.graphs.matrices import Matrix
from lensmith.exporters.storage.rounding import Groups
from lensmith.exporters.storage.scheme import Scheme
from onnxscript import GraphBuilder, nn


def draw_groups(rows: int, columns: int, group: int, bits: int, symmetric: bool, seed: int = 0) -> Groups:
    """Any integers with scales of both signs; `group` CHANNEL is a whole row."""
    draw, count = np.random.default_rng(seed), columns // (group or columns)
    points = None if symmetric else draw.integers(0, 2**bits, (rows, count), np.uint8)
    scales = draw.normal(0, 0.1, (rows, count)).astype(np.float16)
    return Groups(draw.integers(0, 2**bits, (rows, columns), np.uint8), scales, points, bits)


def scheme_of(groups: Groups) -> Scheme:
    size = groups.values.shape[1] // groups.scales.shape[1]
    return Scheme(groups.bits, size, groups.zero_points is None)


def operator_graph(kind: ir.DataType, shape: list[Any], build: Callable[[Any, Value], tuple[Value, nn.Module]],
                   groups: Groups, matrix: Callable[[nn.Module], Matrix]) -> bytes:  # fmt: skip
    """A graph of one operator of the dialect over stored groups, from "x" to "y"."""
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(shape))
    builder = GraphBuilder(ir.Graph([x], [], nodes=[], opset_imports=dict(OPSETS), name="g"))
    y, module = build(builder.op, x)
    weight = matrix(module)
    for parameter, array in zip(weight.parameters(recurse=False), weight.store(groups), strict=True):
        assert parameter.shape is not None
        parameter.const_value = ir.tensor(array.reshape(parameter.shape.numpy()), name=parameter.name)
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    builder.graph.outputs.append(y)
    model = ir.Model(builder.graph, ir_version=IR_VERSIONS[OPSETS[""]], functions=add_functions(builder.graph))
    return bytes(ir.to_proto(model).SerializeToString())


def product_graph(groups: Groups, accuracy_level: int) -> bytes:
    """x [n, columns] times the weights as the dialect has it compute."""
    rows, columns = groups.values.shape
    weight = Matrix(rows, columns, scheme_of(groups))
    weight._set_name("weight")
    dialect = OrtDialect(accuracy_level=accuracy_level)

    def build(op: Any, x: Value) -> tuple[Value, nn.Module]:
        return dialect.matmul(op, x, weight, None), weight

    return operator_graph(ir.DataType.FLOAT, [None, columns], build, groups, lambda _: weight)
