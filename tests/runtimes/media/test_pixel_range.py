"""`max_pixels` alone, below the checkpoint's least pixels, and the other way round: the other bound follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.media.images import ImageSpec, preprocess
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import hf
from tests.helpers.extras import load
from tests.runtimes.media.test_images import noise

SMALL = 20_000  # below the 65,536 of the checkpoint


def assert_as_hf(made: tuple[Any, Any], image: Image.Image, least: int, most: int) -> None:
    """Against the processor with these bounds."""
    processor = type(hf.processor().image_processor)(
        patch_size=16, temporal_patch_size=2, merge_size=2, size={"shortest_edge": least, "longest_edge": most},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    patches, grid = made
    expected = processor(images=[image], return_tensors="np")
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    np.testing.assert_array_equal(patches, expected["pixel_values"])


@pytest.mark.parametrize("most", [1024, 4096, SMALL, 65_535, 65_536, 100_000])
def test_the_least_pixels_follow(tiny_bundle: Path, most: int) -> None:
    image = Image.fromarray(noise(300, 220))
    model = load(tiny_bundle, max_pixels=most)
    spec = model.image_spec
    assert isinstance(spec, ImageSpec)
    assert (spec.min_pixels, spec.max_pixels) == (min(65_536, most), most)
    assert_as_hf(model.media.cut(image), image, min(65_536, most), most)
    assert_as_hf(preprocess(open_image(image), spec), image, min(65_536, most), most)


def test_bounds_of_the_range() -> None:
    spec = ImageSpec(min_pixels=5000, max_pixels=9000, allowed_pixels=(1024, 20_000))
    changed = [
        ({"max_pixels": 2000}, (2000, 2000)),
        ({"min_pixels": 12_000}, (12_000, 12_000)),
        ({"min_pixels": 6000}, (6000, 9000)),
        ({"min_pixels": 2000, "max_pixels": 3000}, (2000, 3000)),
    ]
    for wishes, bounds in changed:
        made = spec.with_pixels(**wishes)
        assert (made.min_pixels, made.max_pixels) == bounds
    for wrong in ({"max_pixels": 1023}, {"min_pixels": 20_001}, {"max_pixels": 20_001}):
        with pytest.raises(InputError, match="outside the 1024 to 20000 pixels"):
            spec.with_pixels(**wrong)
    with pytest.raises(InputError, match="min_pixels 3000 is above max_pixels 2000"):
        spec.with_pixels(min_pixels=3000, max_pixels=2000)


def test_videos_too(tiny_bundle: Path) -> None:
    video = load(tiny_bundle, max_video_pixels=2048).video_spec
    assert video is not None
    assert (video.patches.min_pixels, video.patches.max_pixels) == (2048, 2048)
    with pytest.raises(InputError, match="outside the 1024 to"):
        load(tiny_bundle, max_video_pixels=1023)


def test_an_export_for_small_images(cli: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = cli("export", tiny_checkpoint, "-o", tmp_path / "b", "--golden", "never", "--max-pixels", SMALL)
    assert made.code == 0, made.err
    limits = json.loads((tmp_path / "b" / "lensmith.json").read_text())["limits"]
    assert (limits["min_pixels"], limits["max_pixels"], limits["max_image_tokens"]) == (SMALL, SMALL, SMALL // 1024)
    image = Image.fromarray(noise(300, 220))
    assert_as_hf(load(tmp_path / "b").media.cut(image), image, SMALL, SMALL)
    assert (
        json.loads(cli("plan", tiny_checkpoint, "--json", "--max-pixels", SMALL).out)["image_tokens"]["640 x 480"] < 20
    )
    refused = cli("plan", tiny_checkpoint, "--max-pixels", 1023)
    assert (refused.code, "range of 1024 to" in refused.err) == (2, True)
