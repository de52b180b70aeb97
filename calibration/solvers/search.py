"""Scales and zero points that minimize the squared error of each group, weighted by what the inputs carry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...exporters.storage.rounding import Floats, Groups, quantize
from .inputs import Inputs
from .levels import (
    IntegerGrid,
    cuts,
    in_float16,
    inverses,
)
from .row_parts import by_rows

# Of the range from the smallest to the largest weight. Far down: where few columns carry the outputs, the levels belong
# to them, however large the others are (2 bits in groups of 128, outlier channels: 0.0112 to 0.0094 of the output).
SHRINK = tuple(np.linspace(1.0, 0.1, 12).tolist())
CHUNK = 1 << 16  # weights that are searched together: they and their temporaries fit the second-level cache


def search(weight: Floats, inputs: Inputs, grid: IntegerGrid) -> Groups:
    """Round float32 [rows, columns] to nearest with searched scales. In each group never worse than min-max."""
    scales, zeros = fit(weight, inputs.importance, grid)
    values = np.empty(weight.shape, np.uint8)
    size, rows = grid.group_size, max(1, CHUNK // weight.shape[1])
    for cut in cuts(0, len(weight), rows):
        grouped = weight[cut].reshape(len(weight[cut]), -1, size)
        values[cut] = _round(grouped, scales[cut], zeros[cut], grid).reshape(len(grouped), -1)
    stored = None if grid.symmetric else zeros.astype(np.uint8)
    return Groups(values, scales.astype(np.float16), stored, grid.bits)


def fit(weight: Floats, importance: Floats, grid: IntegerGrid) -> tuple[Floats, Floats]:
    """Scales and zero points, float32 [rows, groups], of weights [rows, columns] with importances [columns].

    Each candidate rounds the group, refits the scale to its integers by least squares, and rounds again; min-max is
    a candidate as it is. Errors are measured with the scales that float16 stores.
    """
    groups = grid.groups(weight.shape[1])
    weights = importance.reshape(groups, grid.group_size)

    def part(rows: slice) -> list[tuple[Floats, Floats]]:
        return [
            _fit(np.ascontiguousarray(weight[cut]).reshape(-1, groups, grid.group_size), weights, grid)
            for cut in cuts(rows.start, rows.stop, max(1, CHUNK // weight.shape[1]))
        ]

    parts = [pair for found in by_rows(part, len(weight)) for pair in found]
    return np.concatenate([scales for scales, _ in parts]), np.concatenate([zeros for _, zeros in parts])


def _fit(block: Floats, importance: Floats, grid: IntegerGrid) -> tuple[Floats, Floats]:
    scales, zeros = _min_max(block, grid)
    best = _error(block, scales, zeros, importance, grid)
    for tried, offsets in _candidates(block, grid):
        tried, offsets = _refit(block, tried, offsets, importance, grid)
        error = _error(block, tried, offsets, importance, grid)
        better = error < best
        best = np.where(better, error, best)
        scales, zeros = np.where(better, tried, scales), np.where(better, offsets, zeros)
    return scales, zeros


def _min_max(block: Floats, grid: IntegerGrid) -> tuple[Floats, Floats]:
    made = quantize(block.reshape(len(block), -1), bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
    zeros = np.full(made.scales.shape, grid.middle) if made.zero_points is None else made.zero_points
    return made.scales.astype(np.float32), zeros.astype(np.float32)


def _candidates(block: Floats, grid: IntegerGrid) -> Iterator[tuple[Floats, Floats]]:
    """Scales with their zero points: shrunk ranges around the middle of either sign, as its levels are lopsided, and
    where zero points are free also shrunk ranges from low to high."""
    low, high = np.minimum(block.min(axis=-1), 0), np.maximum(block.max(axis=-1), 0)
    extreme, spread = np.where(high > -low, high, low), high - low
    middle = np.full(extreme.shape, grid.middle, np.float32)
    for shrink in SHRINK:
        factor = np.float32(shrink)
        yield in_float16(extreme * factor / -grid.middle), middle
        yield in_float16(extreme * factor / (grid.middle - 1 / 2)), middle
        if not grid.symmetric:
            scales = in_float16(spread * factor / grid.top)
            yield scales, np.clip(np.rint(-low * factor * inverses(scales)), 0, grid.top)


def _refit(
    block: Floats, scales: Floats, zeros: Floats, importance: Floats, grid: IntegerGrid
) -> tuple[Floats, Floats]:
    """The least-squares scale, and zero point where it is free, of the integers that `scales` rounds to."""
    steps = _round(block, scales, zeros, grid)
    if not grid.symmetric:
        zeros = _regressed_zeros(block, steps, zeros, importance, grid)
    steps -= zeros[..., None]
    weighted = steps * importance
    along = np.einsum("rgc,rgc->rg", weighted, block)
    across = np.einsum("rgc,rgc->rg", weighted, steps)
    return in_float16(np.divide(along, across, out=scales.copy(), where=across > 0)), zeros


def _regressed_zeros(block: Floats, levels: Floats, zeros: Floats, importance: Floats, grid: IntegerGrid) -> Floats:
    """Where the weighted regression line of the weights on their integers crosses zero, to the nearest integer."""
    share = importance / importance.sum(axis=-1, keepdims=True)
    weighted = levels * share
    level, weight = weighted.sum(axis=-1), np.einsum("rgc,gc->rg", block, share)
    covariance = np.einsum("rgc,rgc->rg", weighted, block) - level * weight
    variance = np.einsum("rgc,rgc->rg", weighted, levels) - level * level
    crossing = level - np.divide(weight * variance, covariance, out=level - zeros, where=covariance != 0)
    wanted: Floats = np.clip(np.rint(crossing), 0, grid.top)
    return wanted


def _round(block: Floats, scales: Floats, zeros: Floats, grid: IntegerGrid) -> Floats:
    levels = block * inverses(scales)[..., None]
    levels += zeros[..., None]
    np.rint(levels, out=levels)
    return np.clip(levels, 0, grid.top, out=levels)


def _error(block: Floats, scales: Floats, zeros: Floats, importance: Floats, grid: IntegerGrid) -> Floats:
    lost = _round(block, scales, zeros, grid)
    lost -= zeros[..., None]
    lost *= scales[..., None]
    lost -= block
    weighted = lost * importance
    error: Floats = np.einsum("rgc,rgc->rg", weighted, lost)
    return error
