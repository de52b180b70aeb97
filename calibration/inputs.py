"""What calibration knows of the inputs of a weight matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rounding import Floats


@dataclass(frozen=True)
class Inputs:
    """Moments of the inputs x [columns] over the calibration tokens, averaged (and weighted) already.

    second: float32 [columns, columns], mean of x xᵀ; magnitude: float32 [columns], mean of |x|.
    """

    second: Floats
    magnitude: Floats

    def __post_init__(self) -> None:
        columns = len(self.magnitude)
        if self.second.shape != (columns, columns):
            raise ValueError(f"second moments of shape {self.second.shape} do not fit {columns} magnitudes")
        if not (np.isfinite(self.energy).all() and np.isfinite(self.magnitude).all()):
            raise ValueError("the statistics of the inputs are not finite")

    @property
    def energy(self) -> Floats:
        """float32 [columns], mean of x²: what an error of each column costs."""
        return np.diagonal(self.second)

    @property
    def importance(self) -> Floats:
        """`energy` with a floor far below the others, so that groups that calibration never saw are rounded well."""
        energy = np.maximum(self.energy, 0)
        floor = np.float32(1e-6) * energy.mean()
        return np.maximum(energy, floor if floor > 0 else np.float32(1))

    def divided(self, scale: Floats) -> Inputs:
        """The statistics of x / scale, with scale float32 [columns]."""
        return Inputs(self.second / np.outer(scale, scale), self.magnitude / scale)
