"""Statistics of the inputs of a matrix, gathered token by token, each token with a weight of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Means:
    """Means over tokens x: of x xᵀ or x̂ x̂ᵀ, of |x|, and with a second stream of x x̂ᵀ."""

    second: Floats  # [columns, columns]
    magnitude: Floats  # [columns]
    cross: Floats | None


@dataclass
class Moments:
    """Weighted sums over tokens x [columns]; with a second stream x̂ beside, over its tokens too."""

    columns: int
    second_stream: bool = False
    weight: float = 0.0  # of all tokens so far
    absolute: NDArray[np.float64] = field(init=False)  # [columns], of |x|
    products: Floats = field(init=False)  # [columns, columns], of x xᵀ, or x̂ x̂ᵀ with a second stream
    crossed: Floats | None = field(init=False)  # [columns, columns], of x x̂ᵀ

    def __post_init__(self) -> None:
        square = (self.columns, self.columns)
        self.absolute = np.zeros(self.columns)
        self.products = np.zeros(square, np.float32)
        self.crossed = np.zeros(square, np.float32) if self.second_stream else None

    def add(self, x: Floats, weights: Floats, other: Floats | None = None) -> None:
        """Count tokens [n, columns] with weights [n] of at least 0, and the same tokens of the second stream."""
        counted = weights > 0
        roots = np.sqrt(weights[counted])[:, None]
        rows = x[counted] * roots
        seen = rows if other is None else other[counted] * roots
        self.weight += float(weights.sum(dtype=np.float64))
        self.absolute += (np.abs(rows) * roots).sum(0, dtype=np.float64)
        self.products += seen.T @ seen
        if self.crossed is not None:
            self.crossed += rows.T @ seen

    def means(self) -> Means:
        """Means over what was counted. The sums are used up: they can be gigabytes."""
        scale = 1 / self.weight if self.weight > 0 else 0.0
        self.products *= np.float32(scale)
        if self.crossed is not None:
            self.crossed *= np.float32(scale)
        return Means(self.products, (self.absolute * scale).astype(np.float32), self.crossed)
