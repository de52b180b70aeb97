"""Rounding and packing: error bounds, and bytes that ONNX Runtime's own kernels read as we mean them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lensmith.exporters.graphs.matrices import Matrix
from lensmith.exporters.storage.packing import pack_low_first, unpack_low_first
from lensmith.exporters.storage.rounding import dequantize, quantize
from lensmith.exporters.storage.scheme import Scheme, largest_group, make_policy
from lensmith.targets.errors import InputError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CASES = [(bits, group, symmetric) for bits in (4, 8) for group in (32, 64, 128) for symmetric in (True, False)]


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    values[0] = 0  # a dead row must stay zero
    values[1] = np.abs(values[1])  # one-sided groups
    values[2, 5] = 40  # an outlier
    return values


@given(st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_pack_and_unpack_are_inverse(count: int, bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, count)).astype(np.uint8)
    packed = pack_low_first(values, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack_low_first(packed, bits, count), values)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(CASES), st.floats(1e-4, 1e3))
@example(0, (8, 32, False), 1e-4)  # scales below the normal numbers of float16
def test_error_is_at_most_one_step(seed: int, case: tuple[int, int, bool], size: float) -> None:
    bits, group, symmetric = case
    weight = weights(4, 256, seed) * np.float32(size)
    made = quantize(weight, bits=bits, group_size=group, symmetric=symmetric)
    step = np.abs(made.scales.astype(np.float32)).repeat(group, axis=1)
    # One step where the level opposite to the exact extreme is clipped (symmetric), half a step elsewhere. Rounding
    # the scale to float16 (2^-11 of it, or half the smallest subnormal) moves the extreme as many times as far as it
    # has levels between itself and zero.
    levels = 2 ** (bits - 1) if symmetric else 2**bits
    assert np.all(np.abs(dequantize(made) - weight) <= step * (1 + levels * 2**-11) + levels * 3e-8)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_is_exact(symmetric: bool) -> None:
    made = quantize(weights(4, 128), bits=4, group_size=32, symmetric=symmetric)
    np.testing.assert_array_equal(dequantize(made)[0], 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_values_without_a_scale_are_refused(value: float) -> None:
    weight = weights(4, 128)
    weight[3, 3] = value
    with pytest.raises(ValueError, match="float16 scale"):
        quantize(weight, bits=4, group_size=128, symmetric=True)


@pytest.mark.parametrize(("bits", "group", "symmetric"), CASES)
def test_matmulnbits_unpacks_the_same_weights(bits: int, group: int, symmetric: bool) -> None:
    weight = weights(48, 256)
    matrix = Matrix(48, 256, Scheme(bits, group, symmetric))
    names = ["values", "scales", "zero_points"]
    arrays = dict(zip(names, matrix.pack(weight), strict=False))
    arrays["values"] = arrays["values"].reshape(48, 256 // group, -1)
    arrays["scales"] = arrays["scales"].astype(np.float32)
    inputs = ["x", *arrays]
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", K=256, N=48, bits=bits,
                            block_size=group, accuracy_level=1)  # fmt: skip
    found = run(node, np.eye(256, dtype=np.float32), arrays).T
    expected = dequantize(quantize(weight, bits=bits, group_size=group, symmetric=symmetric))
    # The kernel computes (q - zero) * scale in float32 as we do; a fused multiply may differ in the last bit.
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize(("bits", "group", "symmetric"), CASES)
def test_gatherblockquantized_unpacks_the_same_rows(bits: int, group: int, symmetric: bool) -> None:
    weight = weights(48, 256)
    arrays = dict(zip(["values", "scales", "zero_points"], Matrix(48, 256, Scheme(bits, group, symmetric)).pack(weight),
                      strict=False))  # fmt: skip
    arrays["values"] = arrays["values"].reshape(48, -1)
    arrays["scales"] = arrays["scales"].astype(np.float32)
    inputs = ["values", "x", *[name for name in arrays if name != "values"]]
    node = helper.make_node("GatherBlockQuantized", inputs, ["y"], domain="com.microsoft", bits=bits, block_size=group,
                            gather_axis=0, quantize_axis=1)  # fmt: skip
    found = run(node, np.array([47, 0, 3, 2]), arrays)
    expected = dequantize(quantize(weight, bits=bits, group_size=group, symmetric=symmetric))[[47, 0, 3, 2]]
    np.testing.assert_array_equal(found, expected)


def run(node: onnx.NodeProto, x: NDArray[Any], constants: dict[str, NDArray[Any]]) -> NDArray[Any]:
    kind = TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.INT64
    graph = helper.make_graph(
        [node],
        "one_operator",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, {"x": x})[0]
    return result


def test_row_scheme_keeps_int8_rows() -> None:
    weight = weights(8, 96)
    values, scales = Matrix(8, 96, Scheme(8, 96, int8_activations=True)).pack(weight)
    assert values.dtype == np.int8
    restored = values.astype(np.float32) * scales.astype(np.float32).reshape(8, 1)
    np.testing.assert_array_equal(restored, dequantize(quantize(weight, bits=8, group_size=96, symmetric=True)))


def test_largest_group_divides() -> None:
    assert [largest_group(n, 128) for n in (256, 96, 80, 48, 20)] == [128, 32, 16, 16, None]


@pytest.mark.parametrize(
    ("precision", "group", "message"), [("int5", 128, "int8"), ("int4", 100, "32, 64, 128, channel")]
)
def test_unknown_choices_are_refused(precision: str, group: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_policy(precision, group_size=group)
