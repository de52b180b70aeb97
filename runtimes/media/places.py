"""Where each patch of an image lies, as the index inputs of graphs in which no value may decide a shape.

Sizes in shapes: S patches. Every function takes a grid (frames, height, width) in patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ...targets.errors import InputError
from ..bundle.input_sections import LocalityEntry, PatchImages
from ..bundle.manifest import VISION_ENCODER, InputSections, Role
from .images import Grid

Ints = NDArray[np.int64]
Index = dict[str, NDArray[Any]]
OUTSIDE = -1e4  # a bias that float16 holds
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


def window_index(grid: Grid, merge: int, side: int) -> Index:
    """The windows of side x side image tokens of one frame; those at its right and lower edge stick out.

    `window_patches` int64 [windows, area] are the patches in each, any one where there is none, and `window_bias`
    float32 [windows, area] is what is added to the scores of a place: 0, or so little where no patch is that its weight
    becomes exactly 0. `window_places` int64 [S] are the places of the patches among those of all windows.
    """
    rows, columns = (size // merge for size in grid[1:])
    down, across = (-(-size // side) for size in (rows, columns))
    windows = np.arange(down * across * side**2).reshape(down, across, side, side)
    places = windows.transpose(0, 2, 1, 3).reshape(down * side, across * side)  # by the row and column of a token
    tokens = np.zeros(places.size, np.int64)
    tokens[places[:rows, :columns].reshape(-1)] = np.arange(rows * columns)
    bias = np.full((places.size, merge**2), OUTSIDE, np.float32)
    bias[places[:rows, :columns].reshape(-1)] = 0
    return {
        "window_patches": _patches_of(tokens, merge).reshape(down * across, -1),
        "window_bias": bias.reshape(down * across, -1),
        "window_places": _patches_of(places[:rows, :columns].reshape(-1), merge),
    }


def _patches_of(tokens: Ints, merge: int) -> Ints:
    """The patches of image tokens, or what is counted like them, one behind the other."""
    return np.asarray((tokens[:, None] * merge**2 + np.arange(merge**2)).reshape(-1), np.int64)


@dataclass(frozen=True)
class ArlowPlaces:
    """The index inputs of an Arlow encoder; `radius` None: attention has no bias."""

    merge: int
    radius: float | None
    strength: float

    @classmethod
    def from_manifest(cls, inputs: InputSections) -> ArlowPlaces:
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


def _qwen_places(inputs: InputSections) -> Callable[[Grid], Index]:
    """A graph that attends within windows says by the shape of an input how large they are."""
    merge = inputs.asked().merge_size
    windows = inputs.graphs[VISION_ENCODER].inputs.get("window_patches")
    if windows is None:
        return lambda grid: qwen_index(grid, merge)
    side = window_side(windows.shape, merge)
    return lambda grid: qwen_index(grid, merge) | window_index(grid, merge, side)


def window_side(shape: Sequence[int | str], merge: int) -> int:
    """Image tokens along each side of a window, by the shape [windows, area]; InputError where it is no square."""
    area = shape[-1]
    side = math.isqrt(area) // merge if isinstance(area, int) else 0
    if len(shape) != 2 or not side or (side * merge) ** 2 != area:
        raise InputError(f"the vision encoder's input window_patches has the shape {list(shape)}; expected [windows, "
                         f"area] with the area of a square of blocks of {merge} x {merge} patches")  # fmt: skip
    return side


INDEXING: Mapping[Role, Callable[[InputSections], Callable[[Grid], Index]]] = {
    "model": _qwen_places,
    "encoder": ArlowPlaces.from_manifest,
}


def indexing(inputs: InputSections) -> tuple[Callable[[Grid], Index], bool]:
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
