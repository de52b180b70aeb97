"""Antialiased resizing of 8-bit images by cubic or Lanczos weights, to the bit as PyTorch's CPU kernels do it.

PyTorch (aten/src/ATen/native/cpu/UpSampleKernel.cpp, `_upsample_bicubic2d_aa` and `_upsample_lanczos2d_aa` on uint8)
follows Pillow's integer scheme: weights in double, scaled to int16 by one power of two for each axis, a horizontal pass
rounded to uint8, then a vertical pass. An axis whose size stays is skipped. Its vectorised and scalar paths add the
same integers, so any order of summation gives the same bits as long as the sums are exact; here they are done as small
dense products of floats (BLAS) over pixels less 128, in float32 where every sum stays below 2**24 and in float64
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..process.cores import spread
from ..process.forks import computing

UInt8 = npt.NDArray[np.uint8]
Kernel: TypeAlias = Literal["bicubic", "lanczos"]
_BLOCK = 48  # outputs of one product: dense enough for BLAS, narrow enough to waste few products
_ALONE = 1 << 18  # multiplications of a product that OpenBLAS does in one thread (interface/gemm.c)
THREAD_PIXELS = 1 << 19  # that are worth a thread


@dataclass(frozen=True)
class AxisWeights:
    """Integer weights of one axis: output i reads `sizes[i]` inputs from `starts[i]`, then shifts by `precision`."""

    starts: npt.NDArray[np.int64]  # [out]
    sizes: npt.NDArray[np.int64]  # [out]
    weights: npt.NDArray[np.int64]  # [out, taps], zero beyond the size
    precision: int  # bits

    def exact_type(self) -> type[np.float32] | type[np.float64]:
        """The narrowest float type in which every partial sum over pixels of -128..127 is an exact integer."""
        largest = 128 * int(np.abs(self.weights).sum(axis=1).max()) + int(np.abs(self.offsets()).max())
        return np.float32 if largest < 1 << 24 and self.precision <= 16 else np.float64

    def offsets(self) -> npt.NDArray[np.int64]:
        """What each sum over pixels less 128 lacks, less 128 of the result: 128 (sum of weights - one) + half."""
        one = 1 << self.precision
        lacking: npt.NDArray[np.int64] = 128 * (self.weights.sum(axis=1) - one) + (one >> 1)
        return lacking


@lru_cache(maxsize=32)
def axis_weights(size_in: int, size_out: int, kernel: Kernel = "bicubic") -> AxisWeights:
    """Weights for resizing one axis of `size_in` pixels to `size_out` (HelperInterpBase, antialias, no corners)."""
    scale, (reach, weigh) = size_in / size_out, KERNELS[kernel]
    support = reach * max(scale, 1.0)
    taps = math.ceil(support) * 2 + 1
    center = scale * (np.arange(size_out) + 0.5)
    starts = np.maximum((center - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((center + support + 0.5).astype(np.int64), size_in)
    sizes = np.clip(ends - starts, 0, taps)
    tap = np.arange(taps)
    values = weigh((tap + starts[:, None] - center[:, None] + 0.5) * (1.0 / scale if scale >= 1.0 else 1.0))
    values[tap >= sizes[:, None]] = 0.0
    total = np.add.accumulate(values, axis=1)[:, -1:]  # one after the other, as the kernel adds them
    values = np.divide(values, total, out=values, where=total != 0.0)
    # Scale by the largest power of two (below 2**23) that keeps every weight in int16, round half away from zero.
    largest = float(values.max(initial=0.0))
    precision = 0
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    scaled = values * (1 << precision)
    return AxisWeights(starts, sizes, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64), precision)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5, in the kernel's order of operations."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A sinc in a window of three lobes of a wider one."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3), 0.0)


# How far each reaches, in pixels of the smaller image, and its weights.
KERNELS: Mapping[Kernel, tuple[float, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]]] = {
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}


def resize_bicubic(planes: UInt8, height: int, width: int) -> UInt8:
    """As `resize`, by cubic weights."""
    return resize(planes, height, width, "bicubic")


def resize(planes: UInt8, height: int, width: int, kernel: Kernel) -> UInt8:
    """Resize `planes` [channels, h, w] to [channels, height, width]; an axis that keeps its size is not touched.

    In as many threads as the caller may use (see `cores`).
    """
    channels, old_height, old_width = planes.shape
    with computing():
        if width != old_width:
            rows = np.ascontiguousarray(planes).reshape(channels * old_height, old_width)
            planes = _resize_columns(rows, width, kernel).reshape(channels, old_height, width)
        if height != old_height:
            planes = _resize_rows(planes, height, kernel)
    return planes


def _resize_columns(rows: UInt8, width: int, kernel: Kernel) -> UInt8:
    """The horizontal pass: [n, w] to [n, width]."""
    plan = axis_weights(rows.shape[1], width, kernel)
    out = np.empty((rows.shape[0], width), np.uint8)
    offsets: npt.NDArray[np.floating] = plan.offsets().astype(plan.exact_type())
    bands = _bands(plan)

    def resize(part: slice) -> None:
        for first, last, low, high, band in bands:
            sums = _products(_centred(rows[part, low:high], band.dtype), band)[:, : last - first]
            out[part, first:last] = _round(sums, offsets[first:last], plan.precision)

    spread(resize, len(rows), THREAD_PIXELS // rows.shape[1])
    return out


def _resize_rows(planes: UInt8, height: int, kernel: Kernel) -> UInt8:
    """The vertical pass: [channels, h, w] to [channels, height, w]."""
    plan = axis_weights(planes.shape[1], height, kernel)
    out = np.empty((planes.shape[0], height, planes.shape[2]), np.uint8)
    offsets: npt.NDArray[np.floating] = plan.offsets()[:, None].astype(plan.exact_type())
    bands = _bands(plan)

    def resize(part: slice) -> None:
        for first, last, low, high, band in bands:
            for channel, plane in enumerate(planes):
                sums = _products(_centred(plane[low:high, part], band.dtype).T, band).T[: last - first]
                out[channel, first:last, part] = _round(sums, offsets[first:last], plan.precision)

    spread(resize, planes.shape[2], THREAD_PIXELS // (planes.shape[0] * planes.shape[1]))
    return out


def _bands(plan: AxisWeights) -> list[tuple[int, int, int, int, npt.NDArray[np.floating]]]:
    """Cut the weight matrix [out, in] into dense blocks: (outputs first:last, inputs low:high, weights).

    Weights have two rows at least: products with a vector have a bound of their own in OpenBLAS.
    """
    blocks, taps = [], plan.weights.shape[1]
    block = min(_BLOCK, max(2, math.isqrt(_ALONE // (4 * taps))))  # fewer where each reads many inputs
    for first in range(0, len(plan.starts), block):
        last = min(first + block, len(plan.starts))
        starts, sizes = plan.starts[first:last], plan.sizes[first:last]
        low, high = int(starts.min()), int((starts + sizes).max())
        band = np.zeros((max(2, last - first), high - low + taps), plan.exact_type())
        columns = (starts - low)[:, None] + np.arange(taps)
        np.put_along_axis(band[: last - first], columns, plan.weights[first:last], axis=1)
        blocks.append((first, last, low, high, np.ascontiguousarray(band[:, : high - low])))
    return blocks


def _products(pixels: npt.NDArray[np.floating], band: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Sums [n, out] of pixels [n, in] with weights [out, in], as products that are too small for BLAS to share out.

    How many threads it takes is a number of the whole process; below _ALONE it takes the caller's alone.
    """
    step = max(2, _ALONE // band.size)
    sums = np.empty((len(pixels), len(band)), band.dtype)
    whole = len(pixels) - len(pixels) % step
    tiles, (outputs, inputs) = (whole // step, step), band.shape
    np.matmul(pixels[:whole].reshape(*tiles, inputs), band.T, out=sums[:whole].reshape(*tiles, outputs))
    np.matmul(pixels[whole:], band.T, out=sums[whole:])
    return sums


def _centred(pixels: UInt8, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Pixels less 128: their sums are half as large, and so are exact in float32 more often."""
    return (pixels ^ np.uint8(128)).view(np.int8).astype(dtype)


def _round(sums: npt.NDArray[np.floating], offsets: npt.NDArray[np.floating], precision: int) -> UInt8:
    """(sum + half) >> precision, clamped to 0..255. Exact: 8 bits before the point, at most 16 behind it."""
    np.add(sums, offsets, out=sums)
    np.multiply(sums, sums.dtype.type(2.0**-precision), out=sums)
    np.add(sums, sums.dtype.type(128), out=sums)
    np.clip(sums, 0, 255, out=sums)
    return sums.astype(np.uint8)  # truncation is floor, now that nothing is negative
