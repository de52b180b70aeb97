"""Rows of weights as numbers of 8 bits: the nearest ones, bit for bit, and what they stand for."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.formats.tensorrt.tensorrt_weights import (
    FLOAT8,
    INT8,
    Byte,
    QdqMatrix,
    round_rows,
)
from lensmith.exporters.storage.rounding import quantize
from lensmith.exporters.storage.scheme import Scheme, make_policy
from numpy.typing import NDArray
from onnxscript import GraphBuilder
from safetensors.numpy import load_file

from tests.helpers.ladder import TRAINED

BFLOAT16, FLOAT16 = ml_dtypes.bfloat16, np.float16
BYTES = {"int8": INT8, "fp8": FLOAT8}


def weights(rows: int = 64, columns: int = 256) -> NDArray[np.float32]:
    """Rows of very different sizes, one with an outlier, one of zeros."""
    draw = np.random.default_rng(3)
    made = draw.standard_normal((rows, columns)) * 10.0 ** draw.uniform(-4, 1, (rows, 1))
    made[1, 7] *= 300
    made[2] = 0
    return made.astype(np.float32)


def test_floats_of_8_bits_are_the_nearest() -> None:
    """Against a search through all 253 finite ones; of two at the same distance that with an even mantissa."""
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    levels = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    values, factors = round_rows(weights(), FLOAT8, BFLOAT16)
    exact = weights().astype(np.float64) / (factors.astype(np.float64) * FLOAT8.step)[:, None]
    assert levels.max() == 448 == FLOAT8.largest
    error = np.abs(values.astype(np.float64) - exact)
    for row, off in zip(exact, error, strict=True):
        assert np.all(off <= np.abs(row[:, None] - levels).min(axis=1) * (1 + 1e-6) + 1e-9)
    assert values.dtype == ml_dtypes.float8_e4m3fn
    halfway = np.array([[1.0625, 1.1875, -1.0625, 448]], np.float32)  # between 1 and 1.125, and 1.125 and 1.25
    assert FLOAT8.round(halfway).astype(np.float32).tolist() == [[1.0, 1.25, -1.0, 448.0]]


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("kind", [BFLOAT16, FLOAT16])
def test_rows_stand_for_their_weights(name: str, kind: Any) -> None:
    byte = BYTES[name]
    values, factors = round_rows(weights(), byte, kind)
    wide = factors.astype(np.float64) * byte.step
    error = np.abs(values.astype(np.float64) * wide[:, None] - weights())
    if byte is INT8:
        assert np.all(error <= 0.501 * wide[:, None] + largest_lost(kind) * np.abs(weights()).max(axis=1)[:, None])
    else:
        allowed = np.maximum(np.abs(weights()) / 16, 2.0**-10 * wide[:, None])
        assert np.all(error <= 1.001 * allowed + largest_lost(kind) * np.abs(weights()).max(axis=1)[:, None])
    assert np.all(factors.astype(np.float32) > 0)
    assert not np.any(values[2].astype(np.float32))


@pytest.mark.parametrize(("name", "low", "high"), [("int8", 0.006, 0.008), ("fp8", 0.025, 0.027)])
def test_what_trained_weights_lose(name: str, low: float, high: float) -> None:
    """The figures of README.md: the error of all matrices, relative to the root mean square of their weights."""
    lost = total = 0.0
    for file in sorted(TRAINED.parent.glob("*/model.safetensors")):
        for rows in (tensor for tensor in load_file(file).values() if tensor.ndim == 2):
            wide = rows.astype(np.float32)
            values, factors = round_rows(wide, BYTES[name], FLOAT16)
            made = values.astype(np.float32) * (BYTES[name].step * factors.astype(np.float32))[:, None]
            lost, total = lost + float(((made - wide) ** 2).sum()), total + float((wide**2).sum())
    assert low < (lost / total) ** 0.5 < high


def largest_lost(kind: Any) -> float:
    """What rounding of the factor can cut off the largest value of a row, relative to it."""
    return {BFLOAT16: 2.0**-8, FLOAT16: 2.0**-11}[kind]


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("kind", [BFLOAT16, FLOAT16])
def test_values_times_their_step_are_exact(name: str, kind: Any) -> None:
    """So that an engine that widens them in 16 bits loses nothing."""
    byte: Byte = BYTES[name]
    all_bytes = np.arange(256, dtype=np.uint8)
    values = all_bytes.view(np.int8 if byte is INT8 else ml_dtypes.float8_e4m3fn).astype(np.float32)
    values = values[np.isfinite(values)]
    assert np.array_equal((values * byte.step).astype(kind).astype(np.float32), values * np.float32(byte.step))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    rows = weights()
    rows[3, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        round_rows(rows, FLOAT8, BFLOAT16)


@pytest.mark.parametrize("activations", [ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
@pytest.mark.parametrize("scheme", [Scheme(8, 256), Scheme(8, 256, float8=True), Scheme(4, 32), Scheme(16), Scheme(32)])
def test_what_is_packed_is_unpacked(scheme: Scheme, activations: ir.DataType) -> None:
    """Within half a step of the largest of a group, and a whole one where 4 bits lack the last level."""
    matrix, rows = QdqMatrix(64, 256, scheme, activations), weights()
    rows[3, 5] *= -100  # scales of 4 bits have a sign
    found = matrix.unpack(matrix.pack(rows))
    assert found.shape == rows.shape
    size = scheme.group_size or 256
    largest = np.abs(rows).reshape(64, -1, size).max(axis=2, keepdims=True)
    steps = {8: 2.0**-3 if scheme.float8 else 1 / 127, 4: 2 / 8, 16: 2.0**-10, 32: 0.0}[scheme.bits]
    off = np.abs(found - rows).reshape(64, -1, size)
    assert np.all(off <= largest * (0.51 * steps + (2.0**-8 if scheme.bits <= 8 else 0)) + 1e-7)


def test_calibrated_integers_are_kept() -> None:
    """Groups whose scales have a sign as values around 0 with factors that have none."""
    matrix = QdqMatrix(64, 256, Scheme(8, 256), ir.DataType.FLOAT16)
    made = quantize(weights(), bits=8, group_size=256, symmetric=True)
    values, factors = matrix.store(made)
    expected = (made.values.astype(np.float32) - 128) * made.scales.astype(np.float32)
    found = values.astype(np.float32) * INT8.step * factors.astype(np.float32)[:, None]
    inside = made.values > 0  # the lowest level has no place around 0
    assert np.array_equal(found[inside], expected[inside])
    assert np.all(np.abs(found - expected) <= np.abs(made.scales.astype(np.float32)))
    assert np.all(factors > 0)  # of the row of zeros, too, as TensorRT wants scales


@pytest.mark.parametrize(
    ("bits", "activations", "stored", "given"),
    [(32, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT),
     (32, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT),
     (16, ir.DataType.FLOAT16, ir.DataType.FLOAT16, ir.DataType.FLOAT16),
     (16, ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
     (16, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.FLOAT)],
)  # fmt: skip
def test_floats_have_the_type_of_activations(
    bits: int, activations: ir.DataType, stored: ir.DataType, given: ir.DataType
) -> None:
    """But for weights that are stored in float32, whose products are, too."""
    matrix = QdqMatrix(4, 8, Scheme(bits), activations)
    assert matrix.values.dtype == stored
    builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="g"))
    values = matrix(builder.op)["values"]
    cast = values.producer()
    if cast is None:
        assert values.dtype == given
    else:
        assert (cast.op_type, cast.attributes["to"].as_int()) == ("Cast", given.value)


def test_the_policy_of_floats_of_8_bits() -> None:
    policy = make_policy("fp8", whole_rows=True)
    for role in ("decoder", "table", "vision", "merger", "deepstack", "linear_attention"):
        scheme = policy.scheme(role, 96)
        assert (scheme.bits, scheme.float8, scheme.group_size) == (8, True, 96)
    assert not make_policy("int8", whole_rows=True).scheme("decoder", 96).float8
