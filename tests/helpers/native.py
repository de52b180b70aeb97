"""What tests of lensmith's own kernels share: whether they can run here, and graphs of one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from lensmith.exporters.formats.functions import FUNCTIONS, with_dependencies
from lensmith.exporters.formats.onnx.native_operators import DOMAIN
from lensmith.runtimes.engines.native import LIBRARY, available_kernels, wanted_instructions
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hatch_build import cannot_compile, is_current

Array = NDArray[Any]


def need(name: str) -> None:
    """Skip where a kernel cannot be had; fail where it only was not built."""
    reason = cannot_compile()
    if reason:
        pytest.skip(reason)
    if not is_current():
        pytest.fail(f"{LIBRARY} is missing or older than its sources; run: python hatch_build.py")
    if name not in available_kernels(LIBRARY):
        pytest.skip(f"this processor cannot run {name}")


def session(name: str, feed: Mapping[str, Array], weights: Mapping[str, Array], *, native: bool = True,
            threads: int = 2, **attributes: Any) -> Callable[[], Array]:  # fmt: skip
    """One operator as a graph with its function: its first output.

    Inputs are named in order, "_..." for one that is missing.
    """
    order = [*feed, *weights]
    outputs = onnx.parser.parse_function(FUNCTIONS[DOMAIN, name]).output
    node = helper.make_node(name, [key if not key.startswith("_") else "" for key in order], outputs, domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for key, value in feed.items()
    ]
    stored = [numpy_helper.from_array(value, key) for key, value in weights.items() if not key.startswith("_")]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info(outputs[0], 1, None)], stored)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("com.microsoft", 1), (DOMAIN, 1))]
    functions = [onnx.parser.parse_function(FUNCTIONS[used]) for used in with_dependencies([(DOMAIN, name)])]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime does
    if native:
        wanted_instructions(True)
        options.register_custom_ops_library(str(LIBRARY))
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> Array:
        out: Array = made.run(None, dict(feed))[0]
        return out

    return run


def product_parts(inputs: int = 96, outputs: int = 5, block: int = 32) -> dict[str, Array]:
    """Right inputs of MatMulInt4, all of them, in their order."""
    blocks = -(-inputs // block)
    return {
        "A": np.ones((3, inputs), np.float32),
        "B": np.full((outputs, blocks, block // 2), 0x99, np.uint8),
        "scales": np.ones((outputs, blocks), np.float16),
        "zero_points": np.full((outputs, (blocks + 1) // 2), 0x88, np.uint8),
        "bias": np.zeros(outputs, np.float32),
    }


def open_session(
    node: onnx.NodeProto, given: Mapping[str, int], made: Mapping[str, int], *, native: bool, threads: int
) -> ort.InferenceSession:
    """A graph of one operator of lensmith with its function; inputs and outputs by name with their types."""
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, None) for name, kind in named.items()] for named in (given, made)
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("com.microsoft", 1), (DOMAIN, 1))]
    functions = [onnx.parser.parse_function(FUNCTIONS[used]) for used in with_dependencies([(DOMAIN, node.op_type)])]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if native:
        wanted_instructions()
        options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
