"""GPTQ (Frantar et al. 2022): columns are rounded one after the other, each making up for the errors before it.

With S + damping = R Rᵀ, R upper triangular, the error of the outputs is |E R|², and column k of E R depends on the
columns up to k only. So column k is rounded at W_k + Σ_{j<k} E_j R_jk / R_kk, which sets its part to zero as nearly as
the grid allows, with E = W - Ŵ. These are GPTQ's own updates, without the inverse that the paper factorizes: one
Cholesky decomposition instead of two and an inversion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...exporters.storage.rounding import Floats, Groups
from .cholesky import damped_cholesky
from .inputs import Inputs
from .levels import (
    IntegerGrid,
    Levels,
    cuts,
    inverses,
)
from .row_parts import by_rows
from .search import fit

Order = NDArray[np.intp]


@dataclass(frozen=True)
class GptqOptions:
    """damping: part of the mean energy of the inputs that is added to each.

    static_groups: scales fitted to the weights as they are, and columns taken in order of falling energy; otherwise in
    their own order, with scales fitted to what the errors before a group make of it.
    """

    damping: float = 0.003
    static_groups: bool = True


def gptq(weight: Floats, inputs: Inputs, grid: IntegerGrid, *, options: GptqOptions | None = None) -> Groups:
    """Quantize float32 [rows, columns] so that the outputs on the calibration inputs change little."""
    options = options or GptqOptions()
    return gptq_levels(weight, inputs, grid, options).groups(grid)


def gptq_levels(weight: Floats, inputs: Inputs, grid: IntegerGrid, options: GptqOptions) -> Levels:
    """As `gptq`, in the form that further searches go on from."""
    columns = weight.shape[1]
    order: Order = np.argsort(-inputs.energy, kind="stable") if options.static_groups else np.arange(columns)
    upper, innovation = feedback(inputs.second, order, options.damping + inputs.damping)
    scales, zeros = fit(weight, innovation, grid) if options.static_groups else (None, None)

    def part(rows: slice) -> Levels:
        run = _Pass(weight[rows], order, upper, grid)
        if scales is not None and zeros is not None:
            run.levels.scales, run.levels.zeros = _transposed(scales[rows]), _transposed(zeros[rows])
            run.round(slice(0, columns))
        else:
            for group in cuts(0, columns, grid.group_size):
                run.fit(group, innovation[group])
                run.round(group)
        return run.levels

    return Levels.beside(by_rows(part, len(weight)))


def feedback(second: Floats, order: Order, damping: float) -> tuple[Floats, Floats]:
    """float32 [columns, columns], upper triangular: R_jk / R_kk of the damped moments in the given order.

    And float32 [columns], the R_kk² of each column: the energy of its input that those of later columns cannot make up
    for. Columns without energy get the damping alone: they take no part, and are rounded to nearest.
    """
    turned = order[::-1]
    moments = second[np.ix_(turned, turned)]
    mean = float(np.diagonal(moments).mean(dtype=np.float64))
    moments[np.diag_indices_from(moments)] += np.float32(damping * mean if mean > 0 else 1)
    upper = np.ascontiguousarray(damped_cholesky(moments)[::-1, ::-1])
    diagonal = np.diagonal(upper).copy()
    innovation = np.empty_like(diagonal)
    innovation[order] = diagonal**2
    upper /= diagonal
    return upper, innovation


def _transposed(part: Floats) -> Floats:
    return np.ascontiguousarray(part.T)


class _Pass:
    """One pass over the columns: weights, errors [columns, rows] in the order of the pass, levels in their own."""

    def __init__(self, weight: Floats, order: Order, feedback: Floats, grid: IntegerGrid) -> None:
        rows, columns = weight.shape
        groups = grid.groups(columns)
        self.grid, self.order, self.feedback = grid, order, feedback
        self.weight = np.ascontiguousarray(weight.T[order])
        self.errors = np.zeros_like(self.weight)
        self.levels = Levels(
            values=np.empty((columns, rows), np.float32),
            scales=np.empty((groups, rows), np.float32),
            zeros=np.empty((groups, rows), np.float32),
        )

    def fit(self, group: slice, importance: Floats) -> None:
        """Fit the scales of a group to its weights as the errors so far shift them."""
        shifted = self.weight[group]
        if group.start:
            carried = self.feedback[: group.start, group].T @ self.errors[: group.start]
            shifted = shifted + np.linalg.solve(self.feedback[group, group].T, carried).astype(np.float32)
        scales, zeros = fit(np.ascontiguousarray(shifted.T), importance, self.grid)
        index = group.start // self.grid.group_size
        self.levels.scales[index], self.levels.zeros[index] = scales[:, 0], zeros[:, 0]

    def round(self, columns: slice) -> None:
        """Round some columns in turn; all before them are done."""
        for block in cuts(columns.start, columns.stop):
            carried = self.feedback[: block.start, block].T @ self.errors[: block.start]  # [block, rows]
            within = np.ascontiguousarray(self.feedback[block, block].T)
            errors = self.errors[block]
            for index, weight in enumerate(self.weight[block]):
                target = weight + carried[index] + within[index, :index] @ errors[:index]
                errors[index] = weight - self._nearest(self.order[block.start + index], target)

    def _nearest(self, column: np.intp, target: Floats) -> Floats:
        group = column // self.grid.group_size
        scales, zeros = self.levels.scales[group], self.levels.zeros[group]
        levels = np.clip(np.rint(target * inverses(scales) + zeros), 0, self.grid.top)
        self.levels.values[column] = levels
        nearest: Floats = (levels - zeros) * scales
        return nearest
