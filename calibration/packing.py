"""Bit layouts of quantized weights, one function for each consumer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack_low_first(values: Bytes, bits: int) -> Bytes:
    """Pack uint8 [..., n] of `bits` 8 or 4 along the last axis, first value in the low bits: [..., ceil(n * bits / 8)].

    The layout of ONNX Runtime's MatMulNBits (weights, zero points) and GatherBlockQuantized.
    """
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: Bytes = np.left_shift(values[..., 1::2], 4, dtype=np.uint8)
    packed |= values[..., 0::2]
    return packed


def unpack_low_first(packed: Bytes, bits: int, count: int) -> Bytes:
    """Inverse of `pack_low_first`; `count` is the length of the last axis before packing."""
    if bits == 8:
        return packed
    values = np.stack([packed & 15, packed >> 4], axis=-1)
    return values.reshape(*packed.shape[:-1], -1)[..., :count]
