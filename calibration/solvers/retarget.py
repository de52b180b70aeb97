"""Weights that fit the inputs a quantized model will see (cf. GPTAQ, Qronos)."""

from __future__ import annotations

import numpy as np

from ...exporters.storage.rounding import Floats
from .cholesky import damped_cholesky, solve_right


class Drift:
    """How the inputs x̂ of a quantized model differ from the inputs x of the float one, for all weights that read them.

    second = mean of x̂ x̂ᵀ, cross = mean of x x̂ᵀ, both float32 [columns, columns].
    """

    def __init__(self, second: Floats, cross: Floats, damping: float) -> None:
        """`damping` is λ below over the mean of second's diagonal."""
        self.drift = cross - second
        moments = second.copy()
        mean = float(np.diagonal(second).mean(dtype=np.float64))
        moments[np.diag_indices_from(moments)] += np.float32(damping * mean if mean > 0 else 1)
        self.lower = damped_cholesky(moments) if self.drift.any() else moments

    def retarget(self, weight: Floats) -> Floats:
        """The weights W' that bring W' x̂ closest to W x: float32 [rows, columns].

        Minimizes mean |W x - W' x̂|² + λ |W' - W|²: W' = W + W (cross - second) (second + λ)⁻¹, which is
        W cross second⁻¹ without damping, and W where x̂ = x.
        """
        if not self.drift.any():
            return weight
        return weight + solve_right(weight @ self.drift, self.lower)
