"""How the tensorrt dialect stores weights: integers that DequantizeLinear takes, which stay packed in an engine.

TensorRT widens two forms inside the matrix product: 4 bits in blocks along the inputs, and 8 bits with one scale for
each row. It writes others out as floats at each step.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import nn

from ...calibration.packing import pack_low_first
from ...calibration.rounding import Groups
from ..blocks import Matrix, Op, Table, Value
from ..scheme import Scheme

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
INTEGERS = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
FP16_TINY = float(np.finfo(np.float16).smallest_subnormal)
# Scales are float16 unless activations are bfloat16: a group's scale to 9 bits is far below the rounding to 4.
SCALES: dict[ir.DataType, Any] = {BF16: ml_dtypes.bfloat16, F16: np.float16, F32: np.float16}


class QdqMatrix(Matrix):
    """A weight matrix [rows, columns] whose integers have its own shape."""

    def __init__(self, rows: int, columns: int, scheme: Scheme, activations: ir.DataType) -> None:
        if scheme.quantized:
            nn.Module.__init__(self)
            self.rows, self.columns, self.scheme = rows, columns, scheme
            self._add_integers(activations)
        else:
            super().__init__(rows, columns, scheme)
        self.activations = activations
        self._made: list[Value] = []  # once in a graph

    def _add_integers(self, activations: ir.DataType) -> None:
        scheme, rows, columns = self.scheme, self.rows, self.columns
        self.values = nn.Parameter([rows, columns], dtype=INTEGERS[scheme.bits])
        shape = [rows] if scheme.bits == 8 else [rows, columns // scheme.group_size]
        self.scales = nn.Parameter(shape, dtype=BF16 if activations == BF16 else F16)

    def pack(self, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The stored form of some rows, one array for each parameter in their order."""
        scheme = self.scheme
        if scheme.bits != 8:
            return super().pack(rows)
        values, scales = _round_rows(rows.reshape(len(rows), self.columns))
        return [values, scales.astype(SCALES[self.activations])]

    def store(self, made: Groups) -> list[NDArray[Any]]:
        """The stored form of quantized rows, one array for each parameter in their order."""
        if self.scheme.bits == 8:
            return [_positive(made), np.maximum(np.abs(made.scales[:, 0]), FP16_TINY).astype(SCALES[self.activations])]
        packed = pack_low_first(made.values, 4)
        packed ^= np.uint8(0x88)  # the sign bits of both values: from unsigned around 8 to signed around 0
        return [packed, made.scales.astype(SCALES[self.activations])]

    def forward(self, op: Op, *, widen: bool = True) -> dict[str, Value]:
        """ "values" in the type of activations, but float32 for weights that are stored so."""
        if not self._made:
            self._made.append(self._dequantized(op) if self.scheme.quantized else self._converted(op))
        return {"values": self._made[0]}

    def _dequantized(self, op: Op) -> Value:
        scheme, scales = self.scheme, self.scales
        if self.activations == F32:
            scales = op.Cast(scales, to=F32)
        if scheme.bits == 8:
            return op.DequantizeLinear(self.values, scales, axis=0)
        return op.DequantizeLinear(self.values, scales, axis=1, block_size=scheme.group_size)

    def _converted(self, op: Op) -> Value:
        if self.scheme.bits == 32 or self.activations == F16:
            return self.values
        return op.Cast(self.values, to=self.activations)


def _round_rows(rows: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Whole rows to -127..127 and one scale each; TensorRT refuses scales of 8 bits that are not positive."""
    largest = np.abs(rows).max(axis=1)
    scales = np.maximum(largest / np.float32(127), FP16_TINY).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ValueError("weights are not finite or too large for a float16 scale")
    levels = np.clip(np.rint(rows / scales.astype(np.float32)[:, None]), -127, 127)
    return levels.astype(np.int8), scales


def _positive(made: Groups) -> NDArray[np.int8]:
    """Values around 0 for scales without their sign; the one level that this leaves out becomes the next."""
    signed = made.values.astype(np.int16) - 128
    return np.clip(np.where(made.scales < 0, -signed, signed), -127, 127).astype(np.int8)


class QdqTable(Table):
    """A table to look up by id; an output head that shares it takes the same initializers."""

    def __init__(self, matrix: QdqMatrix) -> None:
        nn.Module.__init__(self)
        self.weight: Matrix = matrix
        self.view = None
