"""Weights that fit the inputs a quantized model will see (cf. GPTAQ, Qronos)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .rounding import Floats


def retarget(weight: Floats, second: Floats, cross: Floats, damping: float) -> Floats:
    """The weights W' that bring W' x̂ closest to W x: float32 [rows, columns].

    x are the inputs of the float model, x̂ those of the quantized one; second = mean of x̂ x̂ᵀ, cross = mean of x x̂ᵀ,
    both [columns, columns]. Minimizes mean |W x - W' x̂|² + λ |W' - W|², with λ the damping times the mean of second's
    diagonal: W' = W + W (cross - second) (second + λ)⁻¹, which is W cross second⁻¹ without damping, and W where x̂ = x.
    Raises ValueError when second is singular and damping 0.
    """
    moments: NDArray[np.float64] = second.astype(np.float64)
    moments[np.diag_indices_from(moments)] += damping * float(np.diagonal(second).mean())
    drift = cross.astype(np.float64) - second
    if not drift.any():
        return weight
    try:
        moved = np.linalg.solve(moments, drift.T)  # the transpose of drift @ inverse: the moments are symmetric
    except np.linalg.LinAlgError as error:
        raise ValueError("the second moments are singular; expected damping above 0") from error
    return weight + weight @ moved.T.astype(np.float32)
