"""What the integers of a weight matrix look like, and rounding to levels whose scales are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...exporters.storage.rounding import FP16_MAX, Floats, Groups

BITS = (2, 3, 4, 8)
LEVELS = ("values", "scales", "zeros")
BLOCK = 128  # columns that are worked on together: wide enough for BLAS, small enough for the cache


@dataclass(frozen=True)
class IntegerGrid:
    """Unsigned integers of `bits`; `group_size` inputs share a scale (all columns: one scale for each row).

    Symmetric grids have the zero point 2^(bits - 1), others one of their own for each group.
    """

    bits: int
    group_size: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"weights of {self.bits} bits are not supported; expected one of 2, 3, 4, 8")
        if self.group_size < 1:
            raise ValueError(f"a group of {self.group_size} inputs is empty; expected at least 1")

    @property
    def top(self) -> int:
        """The largest integer."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of symmetric grids."""
        return int(2 ** (self.bits - 1))

    def groups(self, columns: int) -> int:
        """Groups in a row. Raises ValueError unless they divide it."""
        if columns % self.group_size:
            raise ValueError(f"groups of {self.group_size} inputs do not divide {columns} columns")
        return columns // self.group_size


@dataclass
class Levels:
    """Integers and scales while they are searched, transposed so that one column of the weight is contiguous.

    values: float32 [columns, rows], whole numbers; scales, zeros: float32 [groups, rows], scales exact in float16.
    """

    values: Floats
    scales: Floats
    zeros: Floats

    @staticmethod
    def beside(parts: Sequence[Levels]) -> Levels:
        """Those of parts of the rows, in order, as one."""
        return Levels(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in LEVELS))

    def part(self, rows: slice) -> Levels:
        """A copy of those of some rows."""
        return Levels(*(np.ascontiguousarray(getattr(self, name)[:, rows]) for name in LEVELS))

    def groups(self, grid: IntegerGrid) -> Groups:
        """The same as Groups."""
        zeros = np.ascontiguousarray(self.zeros.T).astype(np.uint8)
        return Groups(
            values=np.ascontiguousarray(self.values.T.astype(np.uint8)),
            scales=np.ascontiguousarray(self.scales.T).astype(np.float16),
            zero_points=None if grid.symmetric else zeros,
            bits=grid.bits,
        )


def inverses(scales: Floats) -> Floats:
    """1 / scale, and 0 where the scale is 0: such a group rounds to its zero point."""
    return np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)


def in_float16(scales: NDArray[np.floating]) -> Floats:
    """Scales as float16 stores them, in float32; those beyond its range become its largest.

    A search may come to such scales where those of min-max can be stored, and then they only have to compete.
    """
    stored: Floats = np.clip(scales, -FP16_MAX, FP16_MAX).astype(np.float16).astype(np.float32)
    return stored


def cuts(start: int, stop: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of up to `size` that cover start..stop in order."""
    for begin in range(start, stop, size):
        yield slice(begin, min(begin + size, stop))
