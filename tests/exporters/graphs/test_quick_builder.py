"""Graphs are those that onnxscript's own builder makes, with as many questions to onnx for two layers as for eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from lensmith.exporters.graphs import graph_files
from lensmith.exporters.graphs.quick_builder import QuickBuilder
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.storage import weights
from lensmith.exporters.synth.making import synth
from onnxscript import GraphBuilder

from tests.paths import TINY

BUILDS = {
    "qwen3_vl": Options(),
    "qwen3_5": Options(format="tensorrt", target="jetson-thor"),
    "llava": Options(target="cuda"),
    "arlow-vision": Options(format="tensorrt", target="rtx-4060", precision="int8"),
    "smolvlm2-500m": Options(precision="fp32"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_graphs_are_those_of_the_slow_builder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = TINY / name if (TINY / name).exists() else synth(name, tmp_path / "checkpoint", tiny=True)
    quick = prepare(path, BUILDS[name])
    monkeypatch.setattr(graph_files, "QuickBuilder", GraphBuilder)
    slow = prepare(path, BUILDS[name])
    assert len(quick.graphs) == len(slow.graphs) > 0
    for one, other in zip(quick.graphs, slow.graphs, strict=True):
        assert _file(one, quick) == _file(other, slow)
        assert weights.graph_file_bytes(one, quick.checkpoint) == len(_file(one, quick))
        assert all(value.const_value is None for value in _weights(one))  # which the count of bytes gave back


def _file(graph: graph_files.Graph, job: Any) -> bytes:
    data: bytes = ir.to_proto(weights.with_data(graph, job.checkpoint)).SerializeToString(deterministic=True)
    return data


def _weights(graph: graph_files.Graph) -> list[ir.Value]:
    names = {str(parameter.name) for source in graph.sources for parameter in source.parameters}
    return [value for name, value in graph.model.graph.initializers.items() if name in names]


def _chain(builder: GraphBuilder, layers: int) -> ir.Graph:
    """So many times the same two nodes."""
    value, op = builder.graph.inputs[0], builder.op
    for _ in range(layers):
        value = op.Softmax(op.Transpose(value, perm=[1, 0]), axis=-1)
        value = op.Transpose(value, perm=[1, 0])
    builder.add_output(value, "out")
    return builder.graph


def _square() -> ir.Graph:
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", 4]))
    return ir.Graph([given], [], nodes=[], opset_imports={"": 21}, name="chain")


@pytest.mark.skipif(not hasattr(GraphBuilder, "_infer_shapes"), reason="this version of onnxscript has no such step")
def test_onnx_is_asked_once_for_nodes_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    infer = onnx.shape_inference.infer_node_outputs

    def counted(schema: onnx.defs.OpSchema, *rest: Any) -> Any:
        asked.append(schema.name)
        return infer(schema, *rest)

    monkeypatch.setattr(onnx.shape_inference, "infer_node_outputs", counted)
    graph = _chain(QuickBuilder(_square()), 8)
    assert sorted(asked) == ["Softmax", "Transpose", "Transpose"]  # of [rows, 4], of [4, rows], and back
    assert [tuple(map(str, node.outputs[0].shape or ())) for node in graph][-2:] == [("4", "rows"), ("rows", "4")]


def test_what_differs_in_attributes_shapes_or_constants_is_asked_anew() -> None:
    builder = QuickBuilder(_square())
    x, op = builder.graph.inputs[0], builder.op
    flat, tall = op.Reshape(x, [-1]), op.Reshape(x, [-1, 2])
    first, second = op.Concat(x, x, axis=0), op.Concat(x, x, axis=1)
    assert [len(value.shape) for value in (flat, tall)] == [1, 2]
    assert second.shape[1] == 8
    assert first.shape[1] == 4
    assert op.Cast(x, to=ir.DataType.FLOAT16).dtype == ir.DataType.FLOAT16
    assert op.Cast(x, to=ir.DataType.INT64).dtype == ir.DataType.INT64


def test_wrong_calls_are_refused_as_before() -> None:
    builder = QuickBuilder(_square())
    with pytest.raises(TypeError, match="Unexpected keyword"):
        builder.op.Softmax(builder.graph.inputs[0], axes=-1)
