"""Statistics of the inputs of a matrix, gathered token by token, image and text apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Means:
    """Means over tokens x: of x xᵀ or x̂ x̂ᵀ, of |x|, and with a second stream of x x̂ᵀ."""

    second: Floats  # [columns, columns]
    magnitude: Floats  # [columns]
    cross: Floats | None


def mean(parts: Sequence[Moments], shares: Sequence[float]) -> Means:
    """Means over tokens of several kinds, each kind with its share. The sums are used up: they can be gigabytes."""
    counted = [(part, share) for part, share in zip(parts, shares, strict=True) if part.tokens and share]
    if not counted:
        counted = [(parts[0], 1.0)]
    total = sum(share for _, share in counted)
    weights = [share / total / max(part.tokens, 1) for part, share in counted]
    used = [part for part, _ in counted]
    crossed = [part.crossed for part in used if part.crossed is not None]
    magnitude = sum((w * part.absolute for w, part in zip(weights, used, strict=True)), np.zeros(used[0].columns))
    return Means(
        second=_sum([part.products for part in used], weights),
        magnitude=magnitude.astype(np.float32),
        cross=_sum(crossed, weights) if crossed else None,
    )


def _sum(arrays: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The weighted sum, in the place of the first; the others are scaled where they lie."""
    for array, weight in zip(arrays, weights, strict=True):
        array *= np.float32(weight)
    for other in arrays[1:]:
        arrays[0][...] += other
    return arrays[0]
