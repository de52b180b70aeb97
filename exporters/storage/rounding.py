"""Round-to-nearest quantization of weight rows in groups, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Groups:
    """Integers and their scales: weight = (values - zero_points) * scales, group by group along the columns.

    values: uint8 [rows, columns]; scales: float16 [rows, columns / group];
    zero_points: uint8 [rows, columns / group], or None where every zero point is 2^(bits - 1).
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero_points: NDArray[np.uint8] | None
    bits: int


def quantize(weight: Floats, *, bits: int, group_size: int, symmetric: bool) -> Groups:
    """Quantize float32 [rows, columns] to unsigned integers of `bits` in groups of `group_size` columns.

    Symmetric: the scale is the value of largest magnitude / -2^(bits-1), so that this value is exact and all levels
    are used (as llama.cpp's Q4_0 and ONNX Runtime's own quantizer do). Asymmetric: min and max of the group,
    widened to include 0, span the levels. Scales are rounded to float16 first and values to the nearest level
    of the rounded scale. Raises ValueError for values that are not finite or too large for a float16 scale.
    """
    rows, columns = weight.shape
    groups = weight.reshape(-1, group_size)
    low, high = groups.min(axis=1), groups.max(axis=1)
    scales, zeros = _symmetric(low, high, bits) if symmetric else _asymmetric(low, high, bits)
    wide = scales.astype(np.float32)
    inverse = np.divide(1.0, wide, out=np.zeros_like(wide), where=wide != 0)
    levels = groups * inverse[:, None]
    levels += zeros[:, None]
    np.rint(levels, out=levels)
    np.clip(levels, 0, 2**bits - 1, out=levels)
    per_row = (rows, columns // group_size)
    return Groups(
        values=levels.astype(np.uint8).reshape(rows, columns),
        scales=scales.reshape(per_row),
        zero_points=None if symmetric else zeros.astype(np.uint8).reshape(per_row),
        bits=bits,
    )


def dequantize(groups: Groups) -> Floats:
    """The float32 [rows, columns] weights that the integers stand for."""
    rows, columns = groups.values.shape
    blocks = groups.values.reshape(rows, groups.scales.shape[1], -1).astype(np.float32)
    zeros: Any = 2 ** (groups.bits - 1) if groups.zero_points is None else groups.zero_points[..., None]
    weights: Floats = (blocks - zeros) * groups.scales[..., None].astype(np.float32)
    return weights.reshape(rows, columns)


def through_8_bits(x: Floats) -> Floats:
    """Activations rounded to 8 bits as one tensor and back: one scale and zero point, as DynamicQuantizeLinear does."""
    low, high = min(float(x.min(initial=0)), 0.0), max(float(x.max(initial=0)), 0.0)
    scale = np.float32((high - low) / 255)
    if not scale:
        return x
    zero = np.rint(np.float32(-low) / scale)
    levels: Floats = np.rint(x / scale)
    levels += zero
    np.clip(levels, 0, 255, out=levels)
    levels -= zero
    levels *= scale
    return levels


def _symmetric(low: Floats, high: Floats, bits: int) -> tuple[NDArray[np.float16], Floats]:
    half = 2 ** (bits - 1)
    extreme = np.where(high > -low, high, low)
    return _as_fp16(extreme / -half), np.full(len(low), half, np.float32)


def _asymmetric(low: Floats, high: Floats, bits: int) -> tuple[NDArray[np.float16], Floats]:
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = _as_fp16((high - low) / (2**bits - 1))
    wide = scales.astype(np.float32)
    zeros = np.rint(np.divide(-low, wide, out=np.zeros_like(wide), where=wide != 0))
    return scales, np.clip(zeros, 0, 2**bits - 1)


def _as_fp16(scales: Floats) -> NDArray[np.float16]:
    if not np.all(np.abs(scales) <= FP16_MAX):  # false for NaN as well
        raise ValueError("weights are not finite or too large for a float16 scale")
    return scales.astype(np.float16)
