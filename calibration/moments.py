"""Statistics of the inputs of a matrix, gathered token by token, image and text apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass
class Moments:
    """Sums over tokens x [columns] of one kind; with a second stream x̂ beside, over its tokens too."""

    columns: int
    second_stream: bool = False
    tokens: int = 0
    absolute: NDArray[np.float64] = field(init=False)  # [columns], of |x|
    products: Floats = field(init=False)  # [columns, columns], of x xᵀ, or x̂ x̂ᵀ with a second stream
    crossed: Floats | None = field(init=False)  # [columns, columns], of x x̂ᵀ

    def __post_init__(self) -> None:
        square = (self.columns, self.columns)
        self.absolute = np.zeros(self.columns)
        self.products = np.zeros(square, np.float32)
        self.crossed = np.zeros(square, np.float32) if self.second_stream else None

    def add(self, x: Floats, other: Floats | None = None) -> None:
        """Count tokens [n, columns], and the same tokens of the second stream."""
        if not len(x):
            return
        self.tokens += len(x)
        self.absolute += np.abs(x).sum(0, dtype=np.float64)
        seen = x if other is None else other
        self.products += seen.T @ seen
        if self.crossed is not None:
            self.crossed += x.T @ seen


def mean(parts: list[Moments], shares: list[float]) -> dict[str, Any]:
    """Means over tokens of several kinds, each kind with its share: `second`, `magnitude`, and `cross` or None."""
    counted = [(part, share) for part, share in zip(parts, shares, strict=True) if part.tokens and share]
    total = sum(share for _, share in counted)
    weights = [share / total / part.tokens for part, share in counted]
    columns = parts[0].columns
    out: dict[str, Any] = {
        "second": np.zeros((columns, columns), np.float32),
        "magnitude": np.zeros(columns, np.float32),
        "cross": None if parts[0].crossed is None else np.zeros((columns, columns), np.float32),
    }
    for (part, _), weight in zip(counted, weights, strict=True):
        out["second"] += np.float32(weight) * part.products
        out["magnitude"] += (weight * part.absolute).astype(np.float32)
        if part.crossed is not None:
            out["cross"] += np.float32(weight) * part.crossed
    return out
