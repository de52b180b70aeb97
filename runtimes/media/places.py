"""Where each patch of an image lies, as the index inputs of graphs in which no value may decide a shape.

Sizes in shapes: S patches. Every function takes a grid (frames, height, width) in patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ..bundle.input_sections import LocalityEntry, PatchImages
from ..bundle.manifest import Inputs, Role
from .images import Grid

Ints = NDArray[np.int64]
Index = dict[str, NDArray[Any]]
ROUNDING = 1e-12  # of float64: pairs exactly on the radius are inside


def block_order(grid: Grid, merge: int) -> Ints:
    """Of patches in raster order those of each block of merge x merge side by side, int64 [S]."""
    frames, height, width = grid
    cells = np.arange(frames * height * width).reshape(frames, height // merge, merge, width // merge, merge)
    return cells.transpose(0, 1, 3, 2, 4).reshape(-1)


def qwen_index(grid: Grid, merge: int) -> Index:
    """Row and column of each patch of one frame; patches come by blocks of merge x merge."""
    order = block_order((1, *grid[1:]), merge)
    return {"patch_rows": order // grid[2], "patch_columns": order % grid[2]}


@dataclass(frozen=True)
class ArlowPlaces:
    """The index inputs of an Arlow encoder; `radius` None: attention has no bias."""

    merge: int
    radius: float | None
    strength: float

    @classmethod
    def from_manifest(cls, inputs: Inputs) -> ArlowPlaces:
        """The constants of a bundle's encoder."""
        assert isinstance(inputs.image, PatchImages)
        assert inputs.encoder is not UNSET
        locality = inputs.encoder.locality or LocalityEntry(None, 0.0)
        return cls(inputs.image.merge_size, locality.radius, locality.strength)

    def __call__(self, grid: Grid) -> Index:
        """All index inputs by name; a graph takes those that it has."""
        order = block_order(grid, self.merge)
        places = np.stack(np.unravel_index(np.arange(len(order)), grid))
        index: Index = {
            "patch_places": places.astype(np.float32),
            "block_order": order,
            "raster_order": np.argsort(order),
        }
        if self.radius is not None:
            index |= self._offsets(grid, places)
        return index | (_cells(grid) if grid[1] % 2 == grid[2] % 2 == 0 else {})

    def _offsets(self, grid: Grid, places: Ints) -> Index:
        """The bias of each offset of a key from a query along the three axes, and what numbers the offsets."""
        assert self.radius is not None
        spans = [2 * size - 1 for size in grid]
        offsets = np.stack(np.unravel_index(np.arange(np.prod(spans)), spans)).astype(np.float64)
        last = np.array(grid, np.float64)[:, None] - 1
        squares = (((offsets - last) / np.maximum(last, 1)) ** 2).sum(axis=0)  # of distances on the unit cube
        bias = -self.strength * np.sqrt(squares)
        if self.radius > 0:
            bias[squares > self.radius**2 * (1 + ROUNDING)] -= 100.0 * self.strength
        numbers = np.ravel_multi_index(tuple(places), spans)
        centre = np.ravel_multi_index(tuple(size - 1 for size in grid), spans)
        return {"offset_bias": bias.astype(np.float32), "key_offsets": numbers, "query_offsets": numbers - centre}


def _qwen_places(inputs: Inputs) -> Callable[[Grid], Index]:
    merge = inputs.asked().merge_size
    return lambda grid: qwen_index(grid, merge)


INDEXING: Mapping[Role, Callable[[Inputs], Callable[[Grid], Index]]] = {
    "model": _qwen_places,
    "encoder": ArlowPlaces.from_manifest,
}


def indexing(inputs: Inputs) -> tuple[Callable[[Grid], Index], bool]:
    """The index inputs of a vision encoder for a grid, and whether its graph knows single frames alone."""
    return INDEXING[inputs.role](inputs), inputs.role == "model"


def _cells(grid: Grid) -> Index:
    """The patches of each cell of 2 x 2, and for each patch the four nearest cells with their shares.

    Upsampling by two with half-pixel centres is 3/4 of the own cell and 1/4 of the neighbour on the side of the patch.
    """
    frames, height, width = grid
    cells = np.arange(frames * height // 2 * width // 2).reshape(frames, height // 2, width // 2)
    rows, columns = _near(height), _near(width)
    near, shares = [], []
    for row, row_share in rows:
        for column, column_share in columns:
            near.append(cells[:, row][:, :, column].reshape(-1))
            shares.append(np.full(cells.size * 4, row_share * column_share, np.float32))
    patches = block_order(grid, 2).reshape(-1, 4).T
    return {"cell_patches": patches, "near_cells": np.stack(near), "near_shares": np.stack(shares)}


def _near(size: int) -> list[tuple[Ints, float]]:
    """For each of `size` patches along an axis the own cell and the neighbour, with their shares."""
    patch = np.arange(size)
    own = patch // 2
    neighbour = np.clip(own + np.where(patch % 2, 1, -1), 0, size // 2 - 1)
    return [(own, 0.75), (neighbour, 0.25)]
