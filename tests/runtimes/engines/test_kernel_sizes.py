"""Tensors and attributes of the wrong size: a kernel refuses them in one sentence before it reads anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.storage.files import hash_file
from onnx import numpy_helper

from tests.helpers.extras import MAIN
from tests.helpers.native import Array, need, product_parts, session
from tests.paths import TINY

RIGHT: dict[str, Any] = {"K": 96, "N": 5, "block_size": 32}


def refused(name: str, parts: dict[str, Array], **attributes: Any) -> str:
    """What the failure of one operator says. The first input is fed, the others are constants."""
    first = dict([next(iter(parts.items()))])
    with pytest.raises(Exception, match=name) as caught:
        session(name, first, {key: part for key, part in parts.items() if key not in first}, **attributes)()
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "part", "expected"),
    [
        ("A", np.ones((3, 95), np.float32), "the input A has the shape [3, 95], expected [any, 96]"),
        ("A", np.ones(0, np.float32), "the input A has the shape [0], expected [any, 96]"),
        ("A", np.ones((), np.float32), "the input A has the shape [], expected [any, 96]"),
        ("A", np.ones((1, 1, 1, 1, 96), np.float32), "an input has 5 dimensions, expected at most 4"),
        ("B", np.ones((5, 3, 15), np.uint8), "the input B has the shape [5, 3, 15], expected [5, 48]"),
        ("B", np.ones((4, 3, 16), np.uint8), "the input B has the shape [4, 3, 16], expected [5, 48]"),
        ("B", np.ones((3, 5, 16), np.uint8), "the input B has the shape [3, 5, 16], expected [5, 48]"),
        ("B", np.ones((5, 0, 16), np.uint8), "the input B has the shape [5, 0, 16], expected [5, 48]"),
        ("scales", np.ones(0, np.float16), "the input scales has the shape [0], expected [5, 3]"),
        ("scales", np.ones((5, 2), np.float16), "the input scales has the shape [5, 2], expected [5, 3]"),
        ("scales", np.ones((3, 5), np.float16), "the input scales has the shape [3, 5], expected [5, 3]"),
        ("scales", np.ones((5, 4), np.float16), "the input scales has the shape [5, 4], expected [5, 3]"),
        ("zero_points", np.ones((5, 1), np.uint8), "the input zero_points has the shape [5, 1], expected [5, 2]"),
        ("zero_points", np.ones(0, np.uint8), "the input zero_points has the shape [0], expected [5, 2]"),
        ("bias", np.ones(4, np.float32), "the input bias has the shape [4], expected [5, 1]"),
        ("bias", np.ones(0, np.float32), "the input bias has the shape [0], expected [5, 1]"),
        ("bias", np.ones((), np.float32), "the input bias has the shape [], expected [5, 1]"),
    ],
)
def test_product_refuses_an_input(key: str, part: Array, expected: str) -> None:
    need("MatMulInt4")
    assert f"MatMulInt4: {expected}" in refused("MatMulInt4", {**product_parts(), key: part}, **RIGHT)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("K", 0, "K is 0, expected 1 to 2147483647"),
        ("K", -96, "K is -96, expected 1 to"),
        ("K", 2**63 - 1, "K is 9223372036854775807, expected 1 to"),
        ("K", 97, "expected [any, 97]"),
        ("N", 0, "N is 0, expected 1 to"),
        ("N", -(2**63), "N is -9223372036854775808, expected 1 to"),
        ("N", 6, "the input B has the shape [5, 3, 16], expected [6, 48]"),
        ("N", 2**31 - 1, "the input B has the shape [5, 3, 16], expected [2147483647, 48]"),
        ("block_size", 0, "block_size is 0, expected 16 to 128"),
        ("block_size", 256, "block_size is 256, expected 16 to 128"),
        ("block_size", 48, "block_size is 48, expected a power of two"),
        ("block_size", 64, "the input B has the shape [5, 3, 16], expected [5, 64]"),
    ],
)
def test_product_refuses_an_attribute(key: str, value: int, expected: str) -> None:
    need("MatMulInt4")
    text = refused("MatMulInt4", product_parts(), **{**RIGHT, key: value})
    assert f"MatMulInt4: {expected}" in text or f"MatMulInt4: the input A has the shape [3, 96], {expected}" in text


def test_product_takes_flat_inputs_and_no_rows() -> None:
    need("MatMulInt4")
    parts = product_parts()
    feed = {"A": parts.pop("A")}
    flat = {key: part.reshape(-1) for key, part in parts.items()}
    run_parts, run_flat = (session("MatMulInt4", feed, some, **RIGHT) for some in (parts, flat))
    np.testing.assert_array_equal(run_parts(), run_flat())
    nothing = session("MatMulInt4", {"A": np.ones((2, 0, 96), np.float32)}, parts, **RIGHT)()
    assert nothing.shape == (2, 0, 5)


QUERY = np.ones((2, 5, 12), np.float32)


@pytest.mark.parametrize(
    ("changes", "heads", "expected"),
    [
        ({"q": QUERY[0]}, 2, "the input query has the shape [5, 12], expected [any, any, any]"),
        ({"k": QUERY[:1]}, 2, "the input key has the shape [1, 5, 12], expected [2, any, 12]"),
        ({"k": QUERY[..., :10]}, 2, "the input key has the shape [2, 5, 10], expected [2, any, 12]"),
        ({"v": QUERY[:, :4]}, 2, "the input value has the shape [2, 4, 12], expected [2, 5, 12]"),
        ({"v": QUERY[0]}, 2, "the input value has the shape [5, 12], expected [2, 5, 12]"),
        ({"k": QUERY[:, :0], "v": QUERY[:, :0]}, 2, "the input key has no elements, unlike query"),
        ({}, 0, "num_heads is 0, expected 1 to 2147483647"),
        ({}, -2, "num_heads is -2, expected 1 to"),
        ({}, 2**63 - 1, "num_heads is 9223372036854775807, expected 1 to"),
        ({}, 2**62, "num_heads is 4611686018427387904, expected 1 to"),
        ({}, 5, "12 values do not make 5 heads of 2, 4, ... or 256 values"),
        ({}, 4, "12 values do not make 4 heads"),
        ({}, 24, "12 values do not make 24 heads"),
        ({key: np.ones((1, 1, 258), np.float32) for key in "qkv"}, 1, "258 values do not make 1 heads"),
        (dict.fromkeys("qkv", QUERY[..., :0]), 10**9, "0 values do not make 1000000000 heads"),
    ],
)
def test_attention_refuses(changes: dict[str, Array], heads: int, expected: str) -> None:
    need("AttentionBf16")
    parts = {**dict.fromkeys("qkv", QUERY), **changes}
    assert f"AttentionBf16: {expected}" in refused("AttentionBf16", parts, num_heads=heads)


@pytest.mark.parametrize("shape", [(0, 5, 12), (2, 0, 12)])
def test_attention_of_nothing(shape: tuple[int, ...]) -> None:
    need("AttentionBf16")
    none = np.ones(shape, np.float32)
    assert session("AttentionBf16", {"q": none, "k": none, "v": none}, {}, num_heads=2)().shape == shape


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("MatMulInt4", {**product_parts(), "scales": np.ones((5, 3), np.float32)}),
        ("MatMulInt4", {**product_parts(), "B": np.ones((5, 3, 16), np.int8)}),
        ("MatMulInt4", {key: part for key, part in product_parts().items() if key in ("A", "B")}),
        ("AttentionBf16", {key: QUERY.astype(np.float64) for key in "qkv"}),
    ],
)
def test_wrong_types_and_missing_inputs_are_refused_on_loading(name: str, parts: dict[str, Array]) -> None:
    need(name)
    assert refused(name, parts, **(RIGHT if name == "MatMulInt4" else {"num_heads": 2}))


def first_node(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in graph.node if node.op_type == operator)
    return found


def put(graph: onnx.GraphProto, name: str, values: Array) -> None:
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend([*kept, numpy_helper.from_array(values, name)])


def short_scales(graph: onnx.GraphProto) -> None:
    put(graph, first_node(graph, "MatMulInt4").input[2], np.ones(1, np.float16))


def no_scales(graph: onnx.GraphProto) -> None:
    put(graph, first_node(graph, "MatMulInt4").input[2], np.ones(0, np.float16))


def short_bias(graph: onnx.GraphProto) -> None:
    node = [node for node in graph.node if node.op_type == "MatMulInt4"][-1]
    node.input.extend([""] * (5 - len(node.input)))
    node.input[4] = "short"
    put(graph, "short", np.zeros(1, np.float32))


def no_inputs(graph: onnx.GraphProto) -> None:
    node = first_node(graph, "MatMulInt4")
    put(graph, node.input[1], np.zeros((128, 0), np.uint8))
    put(graph, "none", np.zeros((1, 1, 0), np.float32))
    node.input[0] = "none"
    next(attribute for attribute in node.attribute if attribute.name == "K").i = 0


def too_many_heads(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "AttentionBf16":
            node.attribute[0].i = 2**63 - 1


def heads_of_no_width(graph: onnx.GraphProto) -> None:
    node = first_node(graph, "AttentionBf16")
    node.attribute[0].i = 10**9
    for i in range(3):
        put(graph, f"none{i}", np.zeros((1, 5, 0), np.float32))
        node.input[i] = f"none{i}"


FAULTS: dict[str, tuple[str, Callable[[onnx.GraphProto], None], str]] = {
    "short scales": ("decoder", short_scales, "MatMulInt4"),
    "no scales": ("decoder", no_scales, "MatMulInt4"),
    "short bias": ("decoder", short_bias, "MatMulInt4"),
    "no inputs": ("decoder", no_inputs, "MatMulInt4"),
    "too many heads": ("vision_encoder", too_many_heads, "AttentionBf16"),
    "heads of no width": ("vision_encoder", heads_of_no_width, "AttentionBf16"),
}


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = prepare(TINY / "qwen3_vl", Options())
    return export(job, tmp_path_factory.mktemp("int4") / "bundle", golden="never").path


def with_fault(bundle: Path, out: Path, name: str, change: Callable[[onnx.GraphProto], None]) -> Path:
    """A copy in which one graph is changed and every hash is right."""
    shutil.copytree(bundle, out)
    graph = out / f"{name}.onnx"
    model = onnx.load(graph, load_external_data=False)
    change(model.graph)
    graph.write_bytes(model.SerializeToString())
    manifest = json.loads((out / "lensmith.json").read_text())
    manifest["files"][graph.name] = hash_file(graph)
    (out / "lensmith.json").write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize("fault", FAULTS)
def test_bundle_with_a_fault_ends_in_one_sentence(fault: str, int4: Path, tmp_path: Path) -> None:
    need("AttentionBf16")
    graph, change, expected = FAULTS[fault]
    bundle = with_fault(int4, tmp_path / "bundle", graph, change)
    image = TINY / "heldout" / "images" / "0001.png"
    command = [sys.executable, "-c", f"import sys; {MAIN}", "run", str(bundle), "What word is written?"]
    command += ["--image", str(image)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # it must not take us along
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert expected in ran.stderr
