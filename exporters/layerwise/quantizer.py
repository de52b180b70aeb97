"""Quantizes the matrices of one stage from the statistics of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...calibration.retarget import retarget
from ...calibration.grid import Grid
from ...calibration.inputs import Inputs
from ...calibration.measure import output_error
from ...calibration.methods import METHODS
from ...calibration.moments import Moments, mean
from ...calibration.rounding import Groups, quantize
from ...calibration.smoothing import search_scales
from ..scheme import Scheme
from .smoothing import Smoothing
from .stages import Product
from ..checkpoint import LazyTensor
from .store import Calibrated, Store
from .streams import TABLE_ROWS

Floats = NDArray[np.float32]
DAMPING = 0.01  # of the second moments' mean diagonal, as in GPTQ


@dataclass(frozen=True)
class Recipe:
    """A way to calibrate: the method that rounds, whether to smooth before, and what its inputs are taken from."""

    method: str  # of calibration's METHODS
    smooth: bool = False
    quantized_inputs: bool = False  # round against the inputs that the quantized layers in front will give


RECIPES = {
    "mse": Recipe("mse"),
    "awq": Recipe("mse", smooth=True),
    "gptq": Recipe("gptq", quantized_inputs=True),
    "descent": Recipe("descent", quantized_inputs=True),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one matrix; errors are relative mean squares of its outputs on the calibration tokens."""

    name: str
    error: float
    nearest_error: float  # of rounding to nearest on the same grid
    outliers: float  # largest of the inputs' magnitudes over their median


def grid_of(scheme: Scheme) -> Grid:
    return Grid(scheme.bits, scheme.group_size, scheme.symmetric)


def quantize_group(
    products: Sequence[Product],
    weights: Mapping[str, Floats],
    moments: Mapping[str, Moments],
    shares: Mapping[str, float],
    schemes: Mapping[str, Scheme],
    smoothing: Smoothing | None,
    recipe: Recipe,
    store: Store,
) -> list[Outcome]:
    """Quantize the matrices that share an input, and store them with the factors of smoothing."""
    kinds = list(moments)
    means = mean([moments[kind] for kind in kinds], [shares[kind] for kind in kinds])
    inputs = Inputs(means["second"], means["magnitude"])
    rounded = [p for p in products if schemes[p.source.name].quantized]
    factor = None
    if smoothing is not None and recipe.smooth and rounded:
        factor = _factor(rounded, weights, inputs, schemes, smoothing)
    outcomes = []
    for product in products:
        name = product.source.name
        if schemes[name].quantized:
            outcomes.append(_quantize(name, weights[name], inputs, means["cross"], schemes[name], factor, recipe, store))
        elif factor is not None:
            store.put(name, Calibrated(columns=factor))
    if factor is not None and smoothing is not None:
        _divide(smoothing, factor, store)
    return outcomes


def _factor(
    products: Sequence[Product],
    weights: Mapping[str, Floats],
    inputs: Inputs,
    schemes: Mapping[str, Scheme],
    smoothing: Smoothing,
) -> Floats | None:
    """The factors of the columns; None where none is better."""
    parts: list[Floats] = []
    for product in products:
        weight = weights[product.source.name]
        halves = smoothing.halves.get(product.source.name)
        parts += [weight] if halves is None else [weight[rows] for rows in halves]
    grid = grid_of(schemes[products[0].source.name])
    scale, before, after = search_scales(parts, inputs, METHODS["rtn"], grid, tied=smoothing.tied)
    return scale if after < before else None


def _quantize(
    name: str,
    weight: Floats,
    inputs: Inputs,
    cross: Floats | None,
    scheme: Scheme,
    factor: Floats | None,
    recipe: Recipe,
    store: Store,
) -> Outcome:
    target = weight if cross is None else retarget(weight, inputs.second, cross, DAMPING)
    known, grid = inputs, grid_of(scheme)
    if factor is not None:
        target, known = target * factor, inputs.divided(factor)
    made = Calibrated(METHODS[recipe.method](target, known, grid), columns=factor)
    store.put(name, made)
    nearest = quantize(weight, bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
    spread = float(inputs.magnitude.max() / max(float(np.median(inputs.magnitude)), 1e-12))
    return Outcome(
        name, output_error(weight, made.effective(), inputs.second), output_error(weight, nearest, inputs.second), spread
    )


def _divide(smoothing: Smoothing, factor: Floats, store: Store) -> None:
    """Divide what makes the inputs by the factors of the columns."""
    rows = factor
    if smoothing.tied is not None:
        rows = np.ones(smoothing.tied.max() + 1, np.float32)
        rows[smoothing.tied] = factor
    for name in smoothing.producers:
        store.divide_rows(name, rows)


def summary(outcome: Outcome) -> dict[str, Any]:
    return vars(outcome)


def quantize_table(tensor: LazyTensor, scheme: Scheme) -> Calibrated:
    """A token table, in blocks of rows, with scales searched for the smallest error of the weights themselves."""
    blocks = []
    for start in range(0, tensor.shape[0], TABLE_ROWS):
        rows = tensor.rows(start, min(start + TABLE_ROWS, tensor.shape[0]))
        blocks.append(METHODS["mse"](rows, _even(rows.shape[1]), grid_of(scheme)))
    zeros = None if blocks[0].zero_points is None else np.concatenate([b.zero_points for b in blocks])  # type: ignore[misc]
    return Calibrated(
        Groups(np.concatenate([b.values for b in blocks]), np.concatenate([b.scales for b in blocks]), zeros, scheme.bits)
    )


def _even(columns: int) -> Inputs:
    return Inputs(np.eye(columns, dtype=np.float32), np.ones(columns, np.float32))
