"""How the tensorrt dialect stores weights: numbers that DequantizeLinear takes, which stay packed in an engine.

TensorRT-RTX 1.7 widens two forms inside the matrix product, for prompts and for single tokens: 4 bits in blocks along
the inputs, and 8 bits with one scale for all that is not 1. So the scales of rows of 8 bits multiply the product
behind it. Others, like 8 bits with scales of rows for single tokens, it writes out as floats at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import nn

from ...graphs.graph_terms import Op, Value
from ...graphs.matrices import Matrix, Table
from ...storage.packing import pack_low_first, unpack_low_first
from ...storage.rounding import Groups
from ...storage.scheme import Scheme

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
FP16_TINY = float(np.finfo(np.float16).smallest_subnormal)
# Scales are float16 unless activations are bfloat16: a group's scale to 9 bits is far below the rounding to 4.
SCALES: dict[ir.DataType, Any] = {BF16: ml_dtypes.bfloat16, F16: np.float16, F32: np.float16}
NUMPY: dict[ir.DataType, Any] = {**SCALES, F32: np.float32}


@dataclass(frozen=True)
class Byte:
    """Numbers of 8 bits: a weight is value * step * the factor of its row.

    Values times step are exact in 16 bits, and about as large as weights are: products must not overflow float16.
    """

    dtype: ir.DataType
    step: float  # a power of two
    largest: int

    def round(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """The nearest values, ties to even."""
        values = np.clip(values, -self.largest, self.largest)
        return np.rint(values).astype(np.int8) if self.dtype == INT8.dtype else values.astype(ml_dtypes.float8_e4m3fn)


INT8 = Byte(ir.DataType.INT8, 2.0**-12, 127)
FLOAT8 = Byte(ir.DataType.FLOAT8E4M3FN, 2.0**-13, 448)


class QdqMatrix(Matrix):
    """A weight matrix [rows, columns] whose numbers have its own shape.

    4 bits have `scales` of groups, 8 bits `factors` of rows.
    """

    holds_groups = False  # scales become bfloat16, or lose their sign

    def __init__(self, rows: int, columns: int, scheme: Scheme, activations: ir.DataType) -> None:
        self.byte = FLOAT8 if scheme.float8 else INT8
        if scheme.quantized:
            nn.Module.__init__(self)
            self.rows, self.columns, self.scheme = rows, columns, scheme
            kind = BF16 if activations == BF16 else F16
            if self.scheme.bits == 8:
                self.values = nn.Parameter([self.rows, self.columns], dtype=self.byte.dtype)
                self.factors = nn.Parameter([self.rows], dtype=kind)
            else:
                self.values = nn.Parameter([self.rows, self.columns], dtype=ir.DataType.INT4)
                self.scales = nn.Parameter([self.rows, self.columns // self.scheme.group_size], dtype=kind)
        else:
            super().__init__(rows, columns, scheme)
        self.activations = activations
        self._made: dict[str, Value] = {}  # once in a graph

    def pack(self, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The stored form of some rows, one array for each parameter in their order."""
        if self.scheme.bits != 8:
            return super().pack(rows)
        return round_rows(rows.reshape(len(rows), self.columns), self.byte, SCALES[self.activations])

    def store(self, made: Groups) -> list[NDArray[Any]]:
        """The stored form of quantized rows, one array for each parameter in their order."""
        kind = SCALES[self.activations]
        if self.scheme.bits == 8:
            factors = np.abs(made.scales[:, 0].astype(np.float32)) / np.float32(INT8.step)
            # Values around 0 for scales without their sign; the one level that this leaves out becomes the next.
            signed = made.values.astype(np.int16) - 128
            positive = np.clip(np.where(made.scales < 0, -signed, signed), -127, 127).astype(np.int8)
            return [positive, np.maximum(factors, FP16_TINY).astype(kind)]
        packed = pack_low_first(made.values, 4)
        packed ^= np.uint8(0x88)  # the sign bits of both values: from unsigned around 8 to signed around 0
        return [packed, made.scales.astype(kind)]

    def unpack(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The weights [rows, columns] that the stored form of some rows stands for; 4 bits come two in a byte."""
        if not self.scheme.quantized:
            return super().unpack(arrays)
        values, scales = (np.asarray(array) for array in arrays)
        wide = scales.astype(np.float32)
        if self.scheme.bits == 8:
            return values.astype(np.float32) * np.float32(self.byte.step) * wide[:, None]
        integers = unpack_low_first(values ^ np.uint8(0x88), 4, self.columns).astype(np.float32) - 8
        return (integers.reshape(*wide.shape, -1) * wide[..., None]).reshape(-1, self.columns)

    def forward(self, op: Op, *, widen: bool = True) -> dict[str, Value]:
        """ "values" in the type of activations, but float32 for weights that are stored so.

        Products with them, and rows of them, are to be multiplied by the "factors" of the rows, where there are such.
        """
        if not self._made:
            self._made = self._dequantized(op) if self.scheme.quantized else {"values": self._converted(op)}
        return self._made

    def _dequantized(self, op: Op) -> dict[str, Value]:
        if self.scheme.bits == 8:
            step = op.Constant(value=ir.tensor(np.array(self.byte.step, NUMPY[self.activations])))
            return {"values": op.DequantizeLinear(self.values, step), "factors": self._enter(op, self.factors)}
        scales = self._enter(op, self.scales)
        return {"values": op.DequantizeLinear(self.values, scales, axis=1, block_size=self.scheme.group_size)}

    def _enter(self, op: Op, scales: Value) -> Value:
        return op.Cast(scales, to=F32) if self.activations == F32 else scales

    def _converted(self, op: Op) -> Value:
        if self.scheme.bits == 32 or self.activations == F16:
            return self.values
        return op.Cast(self.values, to=self.activations)


def round_rows(rows: NDArray[np.float32], byte: Byte, kind: Any) -> list[NDArray[Any]]:
    """Whole rows as numbers of 8 bits and one factor each, of a type; values are the nearest of the rounded factor.

    Factors are positive, as TensorRT wants scales. Raises ValueError for rows that are not finite, or too large.
    """
    largest = np.abs(rows).max(axis=1)
    with np.errstate(over="ignore"):
        factors = np.maximum(largest / np.float32(byte.largest * byte.step), FP16_TINY).astype(kind)
    wide = factors.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ValueError(f"weights are not finite or too large for a scale of {np.dtype(kind).name}")
    return [byte.round(rows / (wide * np.float32(byte.step))[:, None]), factors]


class QdqTable(Table):
    """A table to look up by id; an output head that shares it takes the same initializers."""

    def __init__(self, matrix: QdqMatrix) -> None:
        nn.Module.__init__(self)
        self.weight: Matrix = matrix
        self.view = None
