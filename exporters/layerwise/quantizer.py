"""Quantizes the matrices of one stage from the statistics of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...calibration.grid import Grid
from ...calibration.inputs import Inputs
from ...calibration.measure import output_error
from ...calibration.methods import METHODS
from ...calibration.moments import Means
from ...calibration.retarget import Drift
from ...calibration.rounding import quantize
from ...calibration.smoothing import search_scales
from ..lazy_tensors import LazyTensor
from ..scheme import Scheme
from .candidates import joined, rows_of
from .outcomes import Outcome
from .smoothing import Smoothing
from .store import Calibrated, Store

Floats = NDArray[np.float32]
HEAD_ROWS = 16384  # of a table in memory at a time
LOOKED_UP = 1.0
ERROR_ROWS = 256  # of a matrix whose errors are reported
# See `Inputs`. With 20 questions of its tasks and 10 built-in samples, on kinds that it never saw, `qwen3_vl` at 4 bits
# comes from 0.216 nats (rounded to nearest) to 0.035 with the prior, to 0.099 without: there `descent` is worse than
# rounding on answers, and gives way to `mse`. A part of the mean, not the median, would drown all but outlier channels.
PRIOR = 1.0
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


def grid_of(scheme: Scheme) -> Grid:
    """The integers of a scheme."""
    return Grid(scheme.bits, scheme.group_size, scheme.symmetric)


def quantize_group(
    weights: Mapping[str, Floats],
    means: Means,
    schemes: Mapping[str, Scheme],
    smoothing: Smoothing | None,
    recipe: Recipe,
    store: Store,
) -> list[Outcome]:
    """Quantize the matrices that share an input, and store them with the factors of smoothing."""
    inputs = Inputs(means.second, means.magnitude, PRIOR)
    factor = None
    if smoothing is not None and recipe.smooth:
        factor = _factor(weights, inputs, schemes, smoothing)
    for name in weights:
        if factor is not None and not schemes[name].quantized:
            store.put(name, Calibrated(columns=factor))
    outcomes = []
    alike = _alike(weights, schemes)
    for names, target in zip(alike, _targets(weights, alike, means, schemes), strict=True):
        made = _quantize(target, inputs, schemes[names[0]], factor, recipe)
        outcomes += list(_store(names, weights, made, inputs, store))
    if factor is not None and smoothing is not None:
        _divide(smoothing, factor, store)
    return outcomes


def _alike(weights: Mapping[str, Floats], schemes: Mapping[str, Scheme]) -> list[list[str]]:
    """Quantized matrices by their grids: rows are independent, and those of one grid share most of the work."""
    groups: dict[Grid, list[str]] = {}
    for name in weights:
        if schemes[name].quantized:
            groups.setdefault(grid_of(schemes[name]), []).append(name)
    return list(groups.values())


def _targets(
    weights: Mapping[str, Floats], alike: Sequence[Sequence[str]], means: Means, schemes: Mapping[str, Scheme]
) -> list[Floats]:
    """What to round: the weights, below 8 bits fitted to the inputs that the quantized layers in front give."""
    stacked = [np.concatenate([weights[name] for name in names]) for names in alike]
    if means.cross is None:
        return stacked
    drift = Drift(means.second, means.cross, DAMPING)  # as large as the moments, and gone before weights are rounded
    low = [schemes[names[0]].bits < 8 for names in alike]
    return [drift.retarget(rows) if few else rows for rows, few in zip(stacked, low, strict=True)]


def _quantize(target: Floats, inputs: Inputs, scheme: Scheme, factor: Floats | None, recipe: Recipe) -> Calibrated:
    grid, known = grid_of(scheme), inputs
    if factor is not None:
        target, known = target * factor, inputs.divided(factor)
    method = recipe.method if grid.bits < 8 else "rtn"  # 8 bits lose nothing that a search could find
    return Calibrated(METHODS[method](target, known, grid), columns=factor)


def _store(
    names: Sequence[str], weights: Mapping[str, Floats], made: Calibrated, inputs: Inputs, store: Store
) -> Iterator[Outcome]:
    """Store matrices that were quantized as one."""
    spread = float(inputs.magnitude.max() / max(float(np.median(inputs.magnitude)), 1e-12))
    start = 0
    for name in names:
        part = slice(start, start + len(weights[name]))
        own = Calibrated(rows_of(made.groups, part), columns=made.columns) if made.groups is not None else made
        store.put(name, own)
        yield Outcome(name, *_errors(weights[name], own, inputs), spread)
        start = part.stop


def _errors(weight: Floats, made: Calibrated, inputs: Inputs) -> tuple[float, float]:
    """The output errors of calibrated weights and of rounding to nearest, on some of the rows."""
    some, groups = slice(None, None, -(-len(weight) // ERROR_ROWS)), made.groups
    assert groups is not None
    rows, size = weight[some], weight.shape[1] // groups.scales.shape[1]
    nearest = quantize(rows, bits=groups.bits, group_size=size, symmetric=groups.zero_points is None)
    effective = Calibrated(rows_of(groups, some), columns=made.columns).effective()
    return output_error(rows, effective, inputs.second), output_error(rows, nearest, inputs.second)


def _factor(
    weights: Mapping[str, Floats], inputs: Inputs, schemes: Mapping[str, Scheme], smoothing: Smoothing
) -> Floats | None:
    """The factors of the columns; None where none is better."""
    rounded = [name for name in weights if schemes[name].quantized]
    parts: list[Floats] = []
    for name in rounded:
        halves = smoothing.halves.get(name)
        parts += [weights[name]] if halves is None else [weights[name][rows] for rows in halves]
    grid = grid_of(schemes[rounded[0]])
    scale, before, after = search_scales(parts, inputs, METHODS["rtn"], grid, tied=smoothing.tied)
    return scale if after < before else None


def _divide(smoothing: Smoothing, factor: Floats, store: Store) -> None:
    """Divide what makes the inputs by the factors of the columns."""
    rows = factor
    if smoothing.tied is not None:
        rows = np.ones(smoothing.tied.max() + 1, np.float32)
        rows[smoothing.tied] = factor  # the same for all inputs that one row makes
    for name in smoothing.producers:
        store.divide_rows(name, rows)


def quantize_table(tensor: LazyTensor, scheme: Scheme, inputs: Inputs | None, method: str) -> Calibrated:
    """A table of tokens in blocks of rows; `inputs` are those of the output head, if it is one.

    Rows that are looked up, too, get an error of their own that the layers carry on: what the head sees is mixed with
    `LOOKED_UP` times its mean energy in all directions. On the trained models this halves the table's KL divergence
    next to searched scales, where the head's inputs alone make looked-up rows worse.
    """
    even = Inputs(np.eye(tensor.shape[1], dtype=np.float32), np.ones(tensor.shape[1], np.float32))
    if scheme.bits == 8 or inputs is None:
        method = "mse" if scheme.bits < 8 else "rtn"
    blocks = []
    for start in range(0, tensor.shape[0], HEAD_ROWS):
        rows = tensor.rows(start, min(start + HEAD_ROWS, tensor.shape[0]))
        blocks.append(METHODS[method](rows, inputs or even, grid_of(scheme)))
    return Calibrated(joined(blocks))


def head_inputs(means: Means, *, looked_up: bool) -> Inputs:
    """The statistics to quantize an output head with; the means are used up."""
    second = means.second
    if looked_up:
        second[np.diag_indices_from(second)] += LOOKED_UP * second.diagonal().mean()
    return Inputs(second, means.magnitude, PRIOR)
