"""Matrices and tables of weights within a graph: how they are stored, and their values as floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import nn

from ..storage.packing import (
    around_eight,
    pack_low_first,
    pack_planes,
    repeat_in_byte,
    unpack_low_first,
    unpack_planes,
)
from ..storage.rounding import Groups, dequantize, quantize
from ..storage.scheme import Scheme
from .graph_terms import Op, Value

FLOATS = {32: (ir.DataType.FLOAT, np.float32), 16: (ir.DataType.FLOAT16, np.float16)}


FLOAT_TYPES = tuple(kind for kind, _ in FLOATS.values())


class Matrix(nn.Module):
    """A weight matrix [rows, columns] of the checkpoint, stored as its scheme says.

    Rows are the outputs, as PyTorch's Linear has them. A tensor of more dimensions is flattened behind the first.
    Integers have the shape [rows, blocks, bytes], or [rows, bytes] when `flat`: the bytes are the same. Those of 2 and
    3 bits are always flat, and have zero points of 4 bits, because they are read as values of 4 bits around 8.
    `floats` is the type of floats and scales in a graph, but for weights that are stored as float32.
    """

    holds_groups = True  # `store` loses nothing of what it is given

    def __init__(
        self, rows: int, columns: int, scheme: Scheme, *, flat: bool = False, floats: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.scheme = rows, columns, scheme
        self.floats = ir.DataType.FLOAT if scheme.bits == 32 else floats
        self._parts: dict[str, Value] = {}
        if not scheme.quantized:
            self.values = nn.Parameter([rows, columns], dtype=FLOATS[scheme.bits][0])
            return
        if scheme.int8_activations:
            self.values = nn.Parameter([rows, columns], dtype=ir.DataType.INT8)
            self.scales = nn.Parameter([rows], dtype=ir.DataType.FLOAT16)
            return
        blocks, row_bytes = columns // scheme.block_size, columns * scheme.bits // 8
        shape = [rows, row_bytes] if flat or scheme.bits < 4 else [rows, blocks, row_bytes // blocks]
        self.values = nn.Parameter(shape, dtype=ir.DataType.UINT8)
        self.scales = nn.Parameter([rows, self.groups], dtype=ir.DataType.FLOAT16)
        if not scheme.symmetric:
            point_bytes = -(-self.groups * max(scheme.bits, 4) // 8)
            self.zero_points = nn.Parameter([rows, point_bytes], dtype=ir.DataType.UINT8)

    @property
    def groups(self) -> int:
        """Of a row; a single one is stored once and repeated for each block of a product."""
        return self.columns // self.scheme.group_size

    def pack(self, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The stored form of some rows, one array for each parameter in their order."""
        rows = rows.reshape(len(rows), self.columns)
        scheme = self.scheme
        if not scheme.quantized:
            return [to_float(rows, scheme.bits)]
        return self.store(quantize(rows, bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric))

    def store(self, made: Groups) -> list[NDArray[Any]]:
        """The stored form of quantized rows, one array for each parameter in their order."""
        bits = self.scheme.bits
        if self.scheme.int8_activations:
            return [(made.values ^ 0x80).view(np.int8), made.scales]  # unsigned around 128 to signed around 0
        values = pack_planes(made.values) if bits == 3 else pack_low_first(made.values, bits)
        arrays: list[NDArray[Any]] = [values, made.scales]
        if made.zero_points is not None:
            points, wide = (made.zero_points, bits) if bits >= 4 else (around_eight(made.zero_points, bits), 4)
            arrays.append(repeat_in_byte(points, wide) if self.groups == 1 else pack_low_first(points, wide))
        return arrays

    def unpack(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The weights [rows, columns] that the stored form of some rows stands for; `pack` and `store` backwards."""
        values, *rest = (np.asarray(array) for array in arrays)
        if not self.scheme.quantized:
            return values.reshape(-1, self.columns).astype(np.float32)
        if self.scheme.int8_activations:
            return values.astype(np.float32) * rest[0].astype(np.float32)[:, None]
        bits, flat = self.scheme.bits, values.reshape(len(values), -1)
        integers = unpack_planes(flat, self.columns) if bits == 3 else unpack_low_first(flat, bits, self.columns)
        points = None
        if len(rest) > 1:
            points = unpack_low_first(rest[1], max(bits, 4), self.groups)
            points = points - around_eight(np.zeros_like(points), min(bits, 4))
        return dequantize(Groups(integers, rest[0], points, bits))

    def forward(self, op: Op, *, widen: bool = True) -> dict[str, Value]:
        """The stored values as graph values: floats and scales in the type `floats`. Made once in a graph.

        Without `widen` floats come as they are stored.
        """
        if not widen:
            return dict(self.named_parameters(recurse=False))
        if not self._parts:
            self._parts = {
                key: _convert(op, value, self.floats) if value.dtype in FLOAT_TYPES else value
                for key, value in self.named_parameters(recurse=False)
            }
        return self._parts


class Derived(nn.Parameter):
    """A float32 parameter that stores a function of its source tensor."""

    def __init__(self, shape: list[int], derive: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        super().__init__(shape)
        self.derive = derive


def offset(shape: list[int], by: float) -> nn.Parameter:
    """A float32 parameter that stores its source tensor plus a constant."""
    return Derived(shape, lambda rows: rows + np.float32(by)) if by else nn.Parameter(shape)


class Table(nn.Module):
    """A table of rows to look up by id, of 4 bits or more: look-ups know no zero points around 8.

    `shared` with an output head, it is a second view of the head's bytes.
    """

    def __init__(
        self, rows: int, columns: int, scheme: Scheme, *, shared: bool, floats: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        super().__init__()
        self.weight = Matrix(rows, columns, scheme, flat=not shared, floats=floats)
        self.view: nn.Parameter | None = None
        if shared and scheme.quantized:
            self.view = nn.Parameter([rows, columns * scheme.bits // 8], dtype=ir.DataType.UINT8)

    def forward(self, op: Op) -> dict[str, Value]:
        """The parts of the matrix, its values in the shape that a look-up wants."""
        parts = self.weight(op)
        return parts if self.view is None else {**parts, "values": self.view}


def to_float(rows: NDArray[np.float32], bits: int) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        stored = rows.astype(FLOATS[bits][1])
    if not np.isfinite(stored).all():
        raise ValueError(f"values are not finite in float{bits}")
    return stored


def _convert(op: Op, value: Value, to: ir.DataType) -> Value:
    # A constant for every engine, folded at load: the smaller type is a matter of disk space only.
    return value if value.dtype == to else op.Cast(value, to=to)
