"""What calibration knows of the inputs of a weight matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...exporters.storage.rounding import Floats


@dataclass(frozen=True)
class Inputs:
    """Moments of the inputs x [columns] over the calibration tokens, averaged (and weighted) already.

    second: float32 [columns, columns], mean of x xᵀ; magnitude: float32 [columns], mean of |x|. prior: part of the
    median energy of the inputs that methods which let columns make up for one another add to the energy of each. Where
    there are few data, it keeps weights near to what they are rounded to without any; outlier channels do not raise it.
    """

    second: Floats
    magnitude: Floats
    prior: float = 0.0

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
    def damping(self) -> float:
        """The prior as a part of the mean energy."""
        mean = float(self.energy.mean(dtype=np.float64))
        return self.prior * float(np.median(self.energy)) / mean if mean > 0 else 0.0

    @property
    def importance(self) -> Floats:
        """`energy` with a floor far below the others, so that groups that calibration never saw are rounded well."""
        energy = np.maximum(self.energy, 0)
        floor = np.float32(1e-6) * energy.mean()
        return np.maximum(energy, floor if floor > 0 else np.float32(1))

    def divided(self, scale: Floats) -> Inputs:
        """The statistics of x / scale, with scale float32 [columns]."""
        return Inputs(self.second / np.outer(scale, scale), self.magnitude / scale, self.prior)
