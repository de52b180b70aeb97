"""Weights for ONNX's own block-quantized DequantizeLinear (operator set 21), which TensorRT fuses into its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..packing import Bytes, pack_low_first
from ..rounding import Groups

TYPES = {4: "INT4", 8: "INT8"}  # ONNX's names, by bits; operator set 21 has no narrower ones


@dataclass(frozen=True)
class LinearBlocks:
    """Inputs of DequantizeLinear and its attributes: weight = (values - zero_points) * scales, block by block.

    values: signed integers of `dtype`, two of 4 bits in a byte with the first one low, in one row of bytes as ONNX's
    raw data has them; [rows, columns] with `axis` 1, or [columns, rows] with `axis` 0. zero_points: the same type,
    packed the same way, or None where all are 0.
    """

    dtype: str
    shape: tuple[int, int]
    values: Bytes  # [bytes]
    scales: NDArray[np.float16]  # shape with the axis divided by block_size
    zero_points: Bytes | None  # [bytes]
    axis: int
    block_size: int


def linear_blocks(groups: Groups, *, columns_first: bool = False) -> LinearBlocks:
    """Groups of 4 or 8 bits as DequantizeLinear reads them; `columns_first` transposes to [columns, rows], axis 0.

    The unsigned values around 2^(bits - 1) become signed ones around 0, so the weights are the same to the last bit.
    TensorRT takes no zero points other than 0: give it symmetric groups. Raises ValueError for other numbers of bits.
    """
    if groups.bits not in TYPES:
        raise ValueError(f"DequantizeLinear has no integers of {groups.bits} bits")
    turned: Any = np.transpose if columns_first else np.asarray
    rows, columns = groups.values.shape
    points = None if groups.zero_points is None else _signed_bytes(turned(groups.zero_points), groups.bits)
    return LinearBlocks(
        dtype=TYPES[groups.bits],
        shape=(columns, rows) if columns_first else (rows, columns),
        values=_signed_bytes(turned(groups.values), groups.bits),
        scales=np.ascontiguousarray(turned(groups.scales)),
        zero_points=points,
        axis=0 if columns_first else 1,
        block_size=columns // groups.scales.shape[1],
    )


def _signed_bytes(values: Bytes, bits: int) -> Bytes:
    """Two's complement of values - 2^(bits - 1): the top bit turned over."""
    return pack_low_first((values ^ np.uint8(2 ** (bits - 1))).reshape(-1), bits)
