"""Coordinate descent on integers, scales and zero points for the exact error of the outputs (cf. QuantEase, CDQuant).

It begins with GPTQ. Then, group by group and with everything else held still, each integer moves to the nearest
level of its optimum, the scale to its least-squares value in float16 if that is better, the zero point to the nearest
integer of its optimum. No step can raise the error tr(E S Eᵀ), E = W - Ŵ.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...exporters.storage.rounding import Floats, Groups
from .gptq import GptqOptions, gptq_levels
from .inputs import Inputs
from .levels import (
    IntegerGrid,
    Levels,
    cuts,
    in_float16,
    inverses,
)
from .row_parts import by_rows


@dataclass(frozen=True)
class DescentOptions:
    """sweeps: passes over all columns at most; settled: part of the integers that may still move in the last one."""

    start: GptqOptions = field(default_factory=GptqOptions)
    damping: float = 0.003
    sweeps: int = 8
    settled: float = 1e-3


def descent(weight: Floats, inputs: Inputs, grid: IntegerGrid, *, options: DescentOptions | None = None) -> Groups:
    """Quantize float32 [rows, columns] by descent from GPTQ's result."""
    options = options or DescentOptions()
    start = gptq_levels(weight, inputs, grid, options.start)
    second = _damped(inputs.second, options.damping + inputs.damping)

    def part(rows: slice) -> Levels:
        run = _Descent(weight[rows], second, start.part(rows), grid)
        for _ in range(options.sweeps):
            if run.sweep() <= options.settled:
                break
        return run.levels

    return Levels.beside(by_rows(part, len(weight))).groups(grid)


def _damped(second: Floats, damping: float) -> Floats:
    moments = second.copy()
    moments[np.diag_indices_from(moments)] += np.float32(damping) * np.diagonal(second).mean()
    return moments


class _Descent:
    """The state of a descent; errors float32 [columns, rows] always equal weight minus levels."""

    def __init__(self, weight: Floats, second: Floats, levels: Levels, grid: IntegerGrid) -> None:
        self.second, self.levels, self.grid = second, levels, grid
        size = grid.group_size
        restored = levels.values.reshape(-1, size, len(weight)) - levels.zeros[:, None]
        restored *= levels.scales[:, None]
        self.errors = weight.T - restored.reshape(levels.values.shape)

    def sweep(self) -> float:
        """Visit every group once; the part of the integers that moved."""
        moved = 0
        for index, group in enumerate(cuts(0, len(self.errors), self.grid.group_size)):
            before = self.errors[group].copy()
            gradient = self.second[group] @ self.errors  # [group, rows]
            moved += self._move_integers(index, group, gradient, before)
            gradient += self.second[group, group] @ (self.errors[group] - before)
            if not self.grid.symmetric:
                self._move_zeros(index, group, gradient)
            self._move_scales(index, group, gradient)
        return moved / self.errors.size

    def _move_integers(self, index: int, group: slice, gradient: Floats, before: Floats) -> int:
        """Each column of a group in turn; `gradient` and `before` are those of the group as the visit begins."""
        scales, inverse = self.levels.scales[index], inverses(self.levels.scales[index])
        moved = 0
        for block in cuts(group.start, group.stop):
            done, here = slice(group.start, block.start), slice(block.start - group.start, block.stop - group.start)
            slopes = gradient[here] + self.second[block, done] @ (self.errors[done] - before[: here.start])
            curves = self.second[block, block]
            change = np.zeros_like(slopes)  # of the errors
            for column, slope in enumerate(slopes):
                curve = curves[column, column]
                if curve <= 0:
                    continue
                slope = slope + curves[column, :column] @ change[:column]
                values = self.levels.values[block.start + column]
                levels = np.clip(np.rint(values + slope * (inverse / curve)), 0, self.grid.top)
                change[column] = (values - levels) * scales
                moved += int(np.count_nonzero(levels != values))
                self.levels.values[block.start + column] = levels
            self.errors[block] += change
        return moved

    def _move_scales(self, index: int, group: slice, gradient: Floats) -> None:
        """Closed-form scale of a group, kept where it is better in float16. Leaves `gradient` behind."""
        steps = self.levels.values[group] - self.levels.zeros[index]
        slope = np.einsum("cr,cr->r", steps, gradient)
        curve = np.einsum("cr,cr->r", steps, self.second[group, group] @ steps)
        scales = self.levels.scales[index]
        wanted = in_float16(scales + np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0))
        change = wanted - scales
        change[change * (2 * slope - change * curve) <= 0] = 0
        self.levels.scales[index] = scales + change
        self.errors[group] -= steps * change

    def _move_zeros(self, index: int, group: slice, gradient: Floats) -> None:
        """Integer zero point of a group at the nearest of its optimum; keeps `gradient` up to date."""
        inner = self.second[group, group].sum(axis=1)
        curve = inner.sum()
        if curve <= 0:
            return
        scales, zeros = self.levels.scales[index], self.levels.zeros[index]
        wanted = np.clip(np.rint(zeros - gradient.sum(axis=0) * inverses(scales) / curve), 0, self.grid.top)
        change = (wanted - zeros) * scales  # of the errors
        self.levels.zeros[index] = wanted
        self.errors[group] += change
        gradient += inner[:, None] * change
