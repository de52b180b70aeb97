"""AWQ (Lin et al. 2023): scale inputs that are large down and their weights up, so that rounding hurts them less."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...exporters.storage.rounding import Floats, Groups, dequantize
from .inputs import Inputs
from .levels import IntegerGrid
from .output_error import output_error

RATIOS = tuple(step / 20 for step in range(20))
ROWS = 512  # of each consumer that the ratios are tried on; the best is then measured on all rows


def search_scales(
    consumers: Sequence[Floats],
    inputs: Inputs,
    method: Callable[[Floats, Inputs, IntegerGrid], Groups],
    grid: IntegerGrid,
    *,
    tied: NDArray[np.int64] | None = None,
) -> tuple[Floats, float, float]:
    """The scale float32 [columns] by which inputs are divided and the columns of all consumers multiplied.

    The scale is magnitude^a for the a of 0, 0.05 … 0.95 that minimizes the sum of the consumers' relative output
    errors, each float32 [rows, columns] apart: parts of a matrix that mean different things are given as several.
    `tied` [columns] is the index of the scale that an input shares with others. Also returns the errors without and
    with the scale; where nothing helps the scale is 1.
    """
    magnitude = _shared(inputs.magnitude, tied)
    few = [rows[:: -(-len(rows) // ROWS)] for rows in consumers]
    scales = [_normalized(magnitude, ratio) for ratio in RATIOS]
    best = scales[int(np.argmin([scaled_error(few, inputs, method, grid, scale) for scale in scales]))]
    without = scaled_error(consumers, inputs, method, grid, scales[0])
    achieved = scaled_error(consumers, inputs, method, grid, best)
    return (best, without, achieved) if achieved < without else (scales[0], without, without)


def scaled_error(
    consumers: Sequence[Floats],
    inputs: Inputs,
    method: Callable[[Floats, Inputs, IntegerGrid], Groups],
    grid: IntegerGrid,
    scale: Floats,
) -> float:
    """The sum over consumers of the relative output error of Q(W scale) / scale."""
    divided = inputs.divided(scale)
    return sum(output_error(rows, dequantize(method(rows * scale, divided, grid)) / scale, inputs.second)
               for rows in consumers)  # fmt: skip


def _shared(magnitude: Floats, tied: NDArray[np.int64] | None) -> Floats:
    """The mean magnitude of the inputs that share a scale, for each input."""
    if tied is None:
        return magnitude
    sums, counts = np.bincount(tied, weights=magnitude), np.bincount(tied)
    means: Floats = (sums / np.maximum(counts, 1))[tied].astype(np.float32)
    return means


def _normalized(magnitude: Floats, ratio: float) -> Floats:
    """magnitude^ratio over the geometric mean of its extremes, as AWQ has it; inputs that are never used keep 1."""
    live = magnitude > 0
    if not live.any():
        return np.ones_like(magnitude)
    scale = np.maximum(magnitude[live] ** np.float32(ratio), np.float32(1e-4))
    scales = np.ones_like(magnitude)
    scales[live] = scale / np.sqrt(scale.max() * scale.min())
    return scales
