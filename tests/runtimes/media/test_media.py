"""Features of images that are kept for later turns: of the same pixels in the same shape, and while they are in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import Model, load, user_message
from lensmith.runtimes.engines.contract import ImageFeatures
from PIL import Image

from tests.helpers.ladder import random_image

FIRST, SECOND, THIRD = (random_image(64, 64 + 32 * index) for index in range(3))  # 4, 6 and 8 tokens


@pytest.fixture(scope="module")
def loaded(tiny_bundle: Path) -> Model:
    model = load(tiny_bundle, threads=1, context=1024, min_pixels=1024)
    assert isinstance(model, Model)
    return model


@pytest.fixture
def encodings(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The grids that the vision encoder was given."""
    calls: list[tuple[int, int, int]] = []
    vision = loaded.vision

    def counted(patches: Any, grid: tuple[int, int, int]) -> ImageFeatures:
        calls.append(grid)
        features: ImageFeatures = vision(patches, grid)
        return features

    loaded.forget()
    monkeypatch.setattr(loaded.media, "vision", counted)
    return calls


def prepare(model: Model, *images: Image.Image) -> list[int]:
    request = model.prepare([user_message("?", images)])
    return [len(image.features) for image in request.images]


def test_the_same_patches_in_another_shape_are_another_image(
    loaded: Model, encodings: list[tuple[int, int, int]]
) -> None:
    """A plain area has the same patches tall and wide, and other features."""
    wide, tall = Image.new("RGB", (96, 64), "red"), Image.new("RGB", (64, 96), "red")
    request = loaded.prepare([user_message("?", [wide, tall, wide])])
    assert encodings == [(1, 4, 6), (1, 6, 4)]
    assert [image.grid for image in request.images] == [(1, 4, 6), (1, 6, 4), (1, 4, 6)]
    for image, source in zip(request.images, (wide, tall), strict=False):
        patches, grid = loaded.media.cut(source)
        np.testing.assert_array_equal(image.features.features, loaded.vision(patches, grid).features)
    assert request.images[0].key != request.images[1].key
    assert np.abs(request.images[0].features.features - request.images[1].features.features).max() > 1e-3


def test_features_in_use_are_kept(
    loaded: Model, encodings: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few tokens are to be kept; others go, the oldest first."""
    monkeypatch.setattr(loaded.media, "most_bytes", 11 * loaded.decoder.hidden * 4 * (1 + loaded.decoder.taps))
    assert prepare(loaded, FIRST) == [4]
    assert prepare(loaded, SECOND) == [6]
    assert prepare(loaded, FIRST, SECOND) == [4, 6]
    assert len(encodings) == 2
    assert prepare(loaded, THIRD) == [8]  # both of the others go: 18 tokens, of which 11 may stay
    assert prepare(loaded, FIRST) == [4]
    assert len(encodings) == 4
    assert prepare(loaded, FIRST, SECOND, THIRD) == [4, 6, 8]
    assert len(encodings) == 6
    assert prepare(loaded, FIRST, SECOND, THIRD) == [4, 6, 8]  # the next turn: all three are in use
    assert len(encodings) == 6
