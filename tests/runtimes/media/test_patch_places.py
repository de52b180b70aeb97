"""Where each patch of an image lies, by hand: orders of patches, offsets between two of them, and cells of four."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from lensmith.runtimes.media.places import ArlowPlaces, block_order, qwen_index


def test_patches_of_a_block_lie_side_by_side() -> None:
    assert block_order((1, 2, 4), 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert block_order((1, 4, 2), 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert block_order((2, 2, 2), 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert block_order((1, 2, 3), 1).tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_and_columns_of_patches_in_blocks() -> None:
    found = qwen_index((5, 2, 4), 2)  # of one frame, whatever their number
    assert found["patch_rows"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found["patch_columns"].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_places_and_orders_of_a_clip() -> None:
    found = ArlowPlaces(merge=2, radius=None, strength=0.0)((2, 2, 6))
    assert found["patch_places"].T.tolist() == [list(place) for place in product(range(2), range(2), range(6))]
    order, back = found["block_order"], found["raster_order"]
    assert order[:12].tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    assert order[back].tolist() == back[order].tolist() == list(range(24))
    assert order[order].tolist() != list(range(24))  # so that the one is not the other
    assert "offset_bias" not in found


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0, 1.2])
def test_the_bias_of_two_patches_is_that_of_their_distance(radius: float) -> None:
    """Along each axis the whole grid is 1 long; beyond the radius a hundred times the strength is taken off."""
    grid, strength = (2, 3, 1), 0.25
    found = ArlowPlaces(merge=1, radius=radius, strength=strength)(grid)
    places = list(product(*map(range, grid)))
    for (query, at), (key, other) in product(enumerate(places), repeat=2):
        spans = [(a - b) / max(size - 1, 1) for a, b, size in zip(at, other, grid, strict=True)]
        distance = math.hypot(*spans)
        expected = -strength * distance - (100 * strength if 0 < radius < distance - 1e-9 else 0)
        bias = found["offset_bias"][found["key_offsets"][key] - found["query_offsets"][query]]
        assert bias == pytest.approx(expected, abs=1e-6), (at, other)


def test_cells_are_enlarged_with_half_pixel_centres() -> None:
    """Along an axis, the two cells a and b become a, 3/4 a + 1/4 b, 1/4 a + 3/4 b, b."""
    found = ArlowPlaces(merge=2, radius=None, strength=0.0)((1, 4, 6))
    cells = np.array([[1.0, 5.0, 2.0], [9.0, 4.0, 8.0]])
    rows = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    columns = np.array([[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0.75, 0.25], [0, 0.25, 0.75], [0, 0, 1]])
    made = (cells.reshape(-1)[found["near_cells"]] * found["near_shares"]).sum(axis=0)
    np.testing.assert_allclose(made.reshape(4, 6), rows @ cells @ columns.T)
    assert found["cell_patches"].T.tolist() == [
        [0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]
    ]  # fmt: skip
    assert "cell_patches" not in ArlowPlaces(merge=1, radius=None, strength=0.0)((1, 3, 4))
