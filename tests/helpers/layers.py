"""Layers for the tests of calibration: weights, and inputs that are correlated and have channels far above the rest."""

from __future__ import annotations

import numpy as np
from lensmith.calibration.solvers.inputs import Inputs
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def make_weight(rows: int, columns: int, seed: int = 0) -> Floats:
    """Heavier tails than a normal distribution, as trained weights have."""
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32) * np.float32(0.02)


def make_inputs(tokens: int, columns: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Two samples [tokens, columns] of one distribution: one to calibrate with, one held out."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((columns, columns)) * (np.arange(1, columns + 1) ** -0.7)[:, None]
    sizes = np.exp(random.standard_normal(columns))
    sizes[random.choice(columns, max(1, columns // 64), replace=False)] *= 20

    def draw() -> Floats:
        noise = random.standard_normal((2, tokens, columns))
        x: Floats = ((noise[0] @ mix + noise[1]) * sizes * 0.3).astype(np.float32)
        return x

    return draw(), draw()


def moments(x: Floats) -> Inputs:
    """The statistics of samples [tokens, columns]."""
    return Inputs((x.T @ x) / np.float32(len(x)), np.abs(x).mean(axis=0))
