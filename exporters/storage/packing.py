"""Bit layouts of quantized weights as ONNX Runtime's kernels and lensmith's own read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack_low_first(values: Bytes, bits: int) -> Bytes:
    """Pack uint8 [..., n] of `bits` 8, 4, 2 or 1 along the last axis, first value lowest: [..., ceil(n * bits / 8)].

    The layout of ONNX Runtime's MatMulNBits (weights, zero points) and GatherBlockQuantized.
    """
    if bits == 8:
        return values
    each = 8 // bits
    if short := -values.shape[-1] % each:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], short), np.uint8)], axis=-1)
    packed: Bytes = values[..., 0::each].copy()
    for place in range(1, each):
        packed |= np.left_shift(values[..., place::each], place * bits, dtype=np.uint8)
    return packed


def unpack_low_first(packed: Bytes, bits: int, count: int) -> Bytes:
    """Inverse of `pack_low_first`; `count` is the length of the last axis before packing."""
    if bits == 8:
        return packed
    values = np.stack([packed >> shift & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1)
    return values.reshape(*packed.shape[:-1], -1)[..., :count]


def pack_planes(values: Bytes) -> Bytes:
    """Pack 3-bit uint8 [rows, n], n a multiple of 8: all low two bits of a row, then all its top bits [rows, 3n / 8].

    The layout of lensmith's MatMulInt3: both planes unpack without values that straddle bytes.
    """
    low, top = values & np.uint8(3), values >> np.uint8(2)
    return np.concatenate([pack_low_first(low, 2), pack_low_first(top, 1)], axis=-1)


def unpack_planes(packed: Bytes, count: int) -> Bytes:
    """Inverse of `pack_planes`; `count` is the length of a row before packing."""
    low, top = packed[..., : count // 4], packed[..., count // 4 :]
    return unpack_low_first(low, 2, count) | unpack_low_first(top, 1, count) << np.uint8(2)


def around_eight(values: Bytes, bits: int) -> Bytes:
    """Values or zero points of up to 4 bits as those of 4 bits that stand for the same weights: the middle is 8."""
    return values + np.uint8(8 - 2 ** (bits - 1))


def repeat_in_byte(values: Bytes, bits: int) -> Bytes:
    """Each of the uint8 values as often as it fits into its byte, so that a byte can be repeated for many groups."""
    return values * np.uint8(255 // (2**bits - 1))
