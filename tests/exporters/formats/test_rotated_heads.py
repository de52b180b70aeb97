"""Norms and rotations of heads as one operator: where it stands, and that its function is what stood there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from lensmith.exporters.formats.onnx import rotated_heads
from lensmith.exporters.graphs import graph_files
from lensmith.exporters.pipeline import Options, export, prepare

from tests.paths import TINY

LAYERS = {"qwen3_vl": {"decoder": 5}, "qwen3_5": {"decoder": 2, "mtp": 1}}  # that attend


def kinds(source: Path, **options: Any) -> dict[str, Counter[str]]:
    graphs = prepare(source, Options(**options)).graphs
    return {graph.name: Counter(node.op_type for node in graph.model.graph) for graph in graphs}


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("options", [{}, {"kv_cache": "float"}, {"precision": "int8"}], ids=str)
def test_quantized_decoders_have_it_in_each_layer_that_attends(family: str, options: dict[str, Any]) -> None:
    found = kinds(TINY / family, **options)
    for graph, layers in LAYERS[family].items():
        assert found[graph]["NormRotary"] == layers
        assert not found[graph]["RotaryEmbedding"]


@pytest.mark.parametrize("family", LAYERS)
def test_float_decoders_keep_stock_operators(family: str) -> None:
    for graph, found in kinds(TINY / family, precision="fp32").items():
        assert not found["NormRotary"]
        assert graph == "vision_encoder" or found["RotaryEmbedding"] == 2 * LAYERS[family][graph]


@pytest.mark.parametrize("family", LAYERS)
def test_its_function_is_what_stood_there(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lensmith's kernels, bit for bit."""
    fused = decoder(tmp_path / "fused", family)
    monkeypatch.setattr(graph_files, "rotate_heads", lambda graph: None)
    plain = decoder(tmp_path / "plain", family)
    names = ({node.op_type for node in ir.load(path).graph} for path in (fused, plain))
    assert ["NormRotary" in each for each in names] == [True, False]
    for mine, theirs in zip(answers(fused), answers(plain), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def decoder(folder: Path, family: str) -> Path:
    return export(prepare(TINY / family, Options()), folder, golden="never").graph("decoder")


def answers(path: Path) -> list[Any]:
    """Five tokens behind eight that fill the caches with anything."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    sizes, draw, feed = {"batch": 1, "seq": 5, "image_tokens": 0, "capacity": 16}, np.random.default_rng(0), {}
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    for port in session.get_inputs():
        shape = [sizes.get(size, 1) if isinstance(size, str) else size for size in port.shape]
        values = draw.normal(size=shape) if port.type in kinds else draw.integers(1, 6, shape)
        feed[port.name] = values.astype(kinds.get(port.type, np.int64))
    feed["past_lengths"] = np.array([8], np.int32)
    made: list[Any] = session.run(None, feed)
    return made


def test_other_users_of_what_is_between_keep_it() -> None:
    """Norms that something else reads, too, stay where they are."""
    for kept in (0, 1, 2):
        graph, values = layer()
        graph.outputs.append(values[kept])
        rotated_heads.rotate_heads(graph)
        assert not [node for node in graph if node.op_type == "NormRotary"]
    graph, _ = layer()
    rotated_heads.rotate_heads(graph)
    assert [node.op_type for node in graph] == ["TwoMatMulInt4", "NormRotary", "GroupQueryAttention"]


@pytest.mark.parametrize("other", [{"epsilon": 1e-5}, {"turned": 4}, {"domain": "other"}], ids=str)
def test_queries_and_keys_must_be_alike(other: dict[str, Any]) -> None:
    graph, _ = layer(**other)
    rotated_heads.rotate_heads(graph)
    assert not [node for node in graph if node.op_type == "NormRotary"]


def layer(
    *, epsilon: float = 1e-6, turned: int = 0, domain: str = "lensmith"
) -> tuple[ir.Graph, tuple[ir.Value, ir.Value, ir.Value]]:
    """A layer whose keys have these attributes, and what is between the nodes of its queries."""
    x, weight, shape, rows, cos, sin = (ir.Value(name=name) for name in ("x", "weight", "shape", "rows", "cos", "sin"))
    products = ir.node("TwoMatMulInt4", [x], domain=domain, num_outputs=2)
    nodes, between = [products], []
    for product, eps, size in zip(products.outputs, (1e-6, epsilon), (0, turned), strict=True):
        split = ir.node("Reshape", [product, shape])
        norm = ir.node("SimplifiedLayerNormalization", [split.outputs[0], weight], {"axis": -1, "epsilon": eps})
        whole = ir.node("Reshape", [norm.outputs[0], shape])
        sizes = {"num_heads": 2, "rotary_embedding_dim": size}
        turns = ir.node("RotaryEmbedding", [whole.outputs[0], rows, cos, sin], sizes, domain="com.microsoft")
        between += [node.outputs[0] for node in (split, norm, whole, turns)]
        nodes += [split, norm, whole, turns]
    attention = ir.node("GroupQueryAttention", [between[3], between[7]], domain="com.microsoft")
    inputs = [x, weight, shape, rows, cos, sin]
    graph = ir.Graph(inputs, [attention.outputs[0]], nodes=[*nodes, attention], opset_imports={"": 21}, name="layer")
    return graph, (between[0], between[1], between[2])
