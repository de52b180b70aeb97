"""Limits of pixels and frames, per call and per part as qwen-vl-utils writes them: HF's pixels, or one sentence."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media.crops import CropSpec
from lensmith.runtimes.media.frames import Clip, VideoLimits
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.runtimes.media.images import ImageSpec
from lensmith.runtimes.media.media_encoder import MediaEncoder
from lensmith.runtimes.media.medium import Medium
from lensmith.runtimes.media.pixels import PixelSpec
from lensmith.runtimes.media.sizing import grown, shrunk
from lensmith.runtimes.media.video import VideoSpec
from lensmith.runtimes.media.wishes import (
    check_limits,
    frame_range,
    image_wishes,
    sample_clip,
    wished_size,
)
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import hf
from tests.runtimes.media.test_images import hf_processor
from tests.runtimes.media.test_images import noise as picture
from tests.runtimes.media.test_video import layout_of
from tests.runtimes.media.test_video import noise as clip

IMAGES = ImageSpec(min_pixels=65_536, max_pixels=262_144, allowed_pixels=(1024, 262_144))
VIDEOS = VideoSpec(ImageSpec(min_pixels=4096, max_pixels=400_000), min_frames=4, max_frames=40)
FACTOR = 32


def opened(part: dict[str, Any], limits: dict[str, Any] | None = None, spec: PixelSpec = IMAGES) -> Medium:
    """What one part gives; nothing is encoded here."""
    encoder = MediaEncoder(cast(Any, None), spec, VIDEOS, ImageLimits(), VideoLimits())
    images, videos = encoder.open([{"role": "user", "content": [part]}], Timings(), limits)
    return [*images, *videos][0]


def patches_of(medium: Medium) -> Any:
    return np.concatenate(list(medium.patches()))


AREAS = st.integers(1024, 262_144)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(20, 700), height=st.integers(20, 700), ends=st.tuples(AREAS, AREAS), per_call=st.booleans())
def test_pixel_ranges_of_images_equal_hf(width: int, height: int, ends: tuple[int, int], per_call: bool) -> None:
    image = Image.fromarray(picture(width, height))
    limits = {"min_pixels": min(ends), "max_pixels": max(ends)}
    spec = ImageSpec(min_pixels=min(ends), max_pixels=max(ends))
    part = {"type": "image", "image": image}
    if max(width, height) > 200 * min(width, height):
        return
    expected = hf_processor(spec)(images=[image], return_tensors="np")
    medium = opened(part, limits) if per_call else opened({**part, **limits}, {"max_pixels": 2048})
    assert [list(medium.grid)] == expected["image_grid_thw"].tolist()
    assert np.array_equal(patches_of(medium), expected["pixel_values"])


def test_bounds_are_within_their_ranges() -> None:
    """By hand: 50 x 70 pixels round to 64 x 64, and three frames fill two temporal patches, of four frames."""

    def sized(frames: int, most: int = 400_000, **wishes: int) -> tuple[int, int]:
        return wished_size(frames, 50, 70, VideoSpec(ImageSpec(max_pixels=most)), wishes)

    assert sized(2, max_pixels=4096) == sized(2, total_pixels=4096) == (64, 64)  # fewer than the spec's 32,768 a frame
    assert sized(2, max_pixels=4095) == (32, 64)
    assert sized(2, max_pixels=1024) == (32, 32)
    with pytest.raises(InputError, match="widen"):
        sized(2, max_pixels=1023)
    assert sized(3, 4 * 65_536, resized_height=256, resized_width=256) == (256, 256)
    with pytest.raises(InputError, match="3 frames of 256 x 256"):
        sized(3, 4 * 65_536 - 1, resized_height=256, resized_width=256)
    least = image_wishes(IMAGES, {"resized_height": 32, "resized_width": 32}, {})
    assert isinstance(least, ImageSpec)
    assert least.exact_size == (32, 32)
    assert shrunk(6400, 32, 32, 65_536) == (3616, 32)
    assert shrunk(32, 6400, 32, 65_536) == (32, 3616)
    assert shrunk(128, 128, 32, 32_768, frames=8) == (64, 64)
    assert grown(64, 64, 32, 8 * 16_384, frames=8) == (128, 128)


def test_seconds_at_the_ends_are_taken() -> None:
    times, part = (0.0, 0.5, 1.0, 1.7), {"video_start": 0.5, "video_end": 1.0}
    assert frame_range(4, 2.0, times, part) == frame_range(4, 2.0, None, part) == (1, 2)
    for shown in (times, None):
        with pytest.raises(InputError, match="fewer than two frames"):
            frame_range(4, 2.0, shown, {"video_start": 0.5, "video_end": 0.9})
    check_limits({"max_pixels": 5000, "max_video_pixels": 5000}, images=0, videos=0)  # nor is there anything to limit


def test_a_given_rate_counts_over_the_times_of_the_file() -> None:
    timed = Clip("it", 4, 2.0, cast(Any, None), times=(0.0, 0.1, 0.2, 5.0))
    part = {"frame_rate": 1, "video_start": 1, "video_end": 2}
    indices, seconds = sample_clip(timed, {**part, "num_frames": 2}, VIDEOS)
    assert (indices.tolist(), seconds) == ([1, 2], (1.5,))
    indices, seconds = sample_clip(timed, {"video_start": 0.1, "num_frames": 2}, VIDEOS)
    assert (indices.tolist(), seconds) == ([1, 3], (2.55,))


def test_wishes_without_an_effect() -> None:
    still, moving = Image.fromarray(picture(64, 64)), clip(4, 64, 64, 0)
    for part, limits, words in (
        ({"type": "image", "image": still}, {"max_video_pixels": 9000}, "max_video_pixels has no effect"),
        ({"type": "video", "video": moving}, {"min_pixels": 9000}, "min_pixels has no effect"),
        ({"type": "video", "video": moving, "nframes": 6}, None, "multiple of 2 up to its 4"),
        ({"type": "video", "video": moving, "nframes": 3}, None, "multiple of 2 up to its 4"),
        ({"type": "video", "video": moving, "num_frames": 4, "min_frames": 2}, None, "no effect without fps"),
        ({"type": "video", "video": moving, "max_frames": 2}, None, "no effect without fps"),
    ):
        with pytest.raises(InputError, match=words):
            opened(part, limits)
    assert layout_of(opened({"type": "video", "video": moving, "nframes": 4})).grid[0] == 2


def test_one_end_alone_moves_the_other() -> None:
    image = Image.fromarray(picture(300, 300))
    part = {"type": "image", "image": image}
    for limits, area in (({"max_pixels": 4096}, 4096), ({"min_pixels": 262_144}, 262_144), ({}, 288 * 288)):
        for medium in (opened({**part, **limits}), opened(part, limits)):
            assert len(patches_of(medium)) * 256 == area


def resized_by_torchvision(frames: Any, size: tuple[int, int]) -> Any:
    import torch
    from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

    tensor = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    return functional.resize(tensor, list(size), interpolation=functional.InterpolationMode.BICUBIC, antialias=True)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (100, 300), (79, 81), (1, 2000), (512, 512)])
def test_exact_sizes_of_images(height: int, width: int) -> None:
    hf.processor()
    pixels, size = picture(333, 222), (max(32, round(height / 32) * 32), max(32, round(width / 32) * 32))
    medium = opened({"type": "image", "image": pixels, "resized_height": height, "resized_width": width})
    assert medium.grid == (1, size[0] // 16, size[1] // 16)
    ready = resized_by_torchvision(pixels[None], size)
    expected = hf_processor(IMAGES)(images=list(ready), do_resize=False, return_tensors="np")["pixel_values"]
    assert np.array_equal(patches_of(medium), expected)


def reference_size(frames: int, height: int, width: int, wishes: dict[str, Any]) -> tuple[int, int]:
    """Each frame on its own: nearest multiples, then into the range of areas."""
    share = VIDEOS.patches.max_pixels / frames
    most = min(share, wishes.get("max_pixels", share), 2 * wishes.get("total_pixels", math.inf) / frames)
    least = wishes.get("min_pixels", min(most, VIDEOS.patches.min_pixels / frames))
    sides = [max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width)]
    area = sides[0] * sides[1]
    if area > most:
        scale = math.sqrt(height * width / most)
        sides = [max(FACTOR, math.floor(side / scale / FACTOR) * FACTOR) for side in (height, width)]
    elif area < least:
        scale = math.sqrt(least / (height * width))
        sides = [math.ceil(side * scale / FACTOR) * FACTOR for side in (height, width)]
    return sides[0], sides[1]


@pytest.mark.parametrize("seed", range(30))
def test_pixel_limits_of_videos(seed: int) -> None:
    processor = hf.processor().video_processor
    draw = random.Random(seed)
    count, height, width = draw.randint(2, 9), draw.randint(20, 300), draw.randint(20, 300)
    frames = clip(count, height, width, seed)
    wishes = draw.choice([
        {"max_pixels": draw.randint(2048, 60_000)}, {"min_pixels": draw.randint(1024, 9000)},
        {"total_pixels": draw.randint(9216, 90_000)}, {"min_pixels": 2048, "max_pixels": draw.randint(4096, 90_000)},
        {"max_pixels": 40_000, "total_pixels": draw.randint(20_000, 90_000)},
        {"resized_height": draw.randint(1, 200), "resized_width": draw.randint(1, 200)},
    ])  # fmt: skip
    medium = opened({"type": "video", "video": frames, "frame_rate": 4, **wishes})
    size = reference_size(count, height, width, wishes)
    if "resized_height" in wishes:
        size = reference_size(count, wishes["resized_height"], wishes["resized_width"], {"min_pixels": 1})
    assert layout_of(medium).grid == ((count + 1) // 2, size[0] // 16, size[1] // 16)
    expected = processor([resized_by_torchvision(frames, size)], do_resize=False, do_sample_frames=False,
                         return_tensors="np")["pixel_values_videos"]  # fmt: skip
    assert np.array_equal(patches_of(medium), expected)


FRAMES = [clip(1, 40, 40, seed)[0] for seed in range(24)]  # six seconds at four a second
TAKEN: list[tuple[dict[str, Any], list[int]]] = [
    ({"nframes": 4}, [0, 8, 15, 23]), ({"num_frames": 3}, [0, 12, 23]), ({"fps": 1}, [0, 5, 9, 14, 18, 23]),
    ({"fps": 1, "min_frames": 8}, [0, 3, 7, 10, 13, 16, 20, 23]), ({"fps": 4, "max_frames": 2}, [0, 23]),
    ({"fps": 4, "max_frames": 3}, [0, 12, 23]), ({"video_start": 5}, [20, 21, 22, 23]), ({"video_end": 0.5}, [0, 1, 2]),
    ({"video_start": 1, "video_end": 2.1}, [4, 5, 6, 7, 8]),
    ({"video_start": 0.9, "video_end": 2, "nframes": 2}, [4, 8]),
    ({"video_start": 5, "video_end": 99, "fps": 2}, [20, 21, 22, 23]), ({}, list(range(24))),
]  # fmt: skip


@pytest.mark.parametrize(("wishes", "indices"), TAKEN)
def test_frames_of_videos(wishes: dict[str, Any], indices: list[int]) -> None:
    """Indices by hand; the seconds are those of the whole video."""
    medium = opened(
        {"type": "video", "video": FRAMES, "frame_rate": 4, "resized_height": 32, "resized_width": 32, **wishes}
    )
    whole = opened({"type": "video", "video": [FRAMES[index] for index in indices], "frame_rate": 4,
                    "resized_height": 32, "resized_width": 32})  # fmt: skip
    assert np.array_equal(patches_of(medium), patches_of(whole))
    padded = [*indices, *indices[-1:] * (len(indices) % 2)]
    assert layout_of(medium).seconds == tuple((a + b) / 8 for a, b in zip(padded[::2], padded[1::2], strict=True))


def test_videos_of_a_call() -> None:
    part = {"type": "video", "video": FRAMES[:4], "frame_rate": 4}
    small = opened(part, {"max_video_pixels": 4096})
    assert layout_of(small).grid == (2, 2, 2)
    assert layout_of(opened(part, {"max_video_pixels": None})).grid == (2, 2, 2)
    assert layout_of(opened({**part, "video": clip(4, 300, 300)}, {"max_video_pixels": 40_000})).grid == (2, 6, 6)


IMAGE: dict[str, Any] = {"type": "image", "image": picture(64, 64)}
VIDEO: dict[str, Any] = {"type": "video", "video": FRAMES, "frame_rate": 4}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({**IMAGE, "min_pixels": 2, "max_pixels": 4096}, {}, "min_pixels 2 is outside"),
    ({**IMAGE, "max_pixels": 10**9}, {}, "max_pixels 1000000000 is outside"),
    ({**IMAGE, "min_pixels": 9000, "max_pixels": 4096}, {}, "above max_pixels"),
    ({**IMAGE, "max_pixels": "4096"}, {}, "max_pixels is '4096'"),
    ({**IMAGE, "max_pixels": 4096.0}, {}, "max_pixels is 4096.0"),
    ({**IMAGE, "resized_height": 64}, {}, "both resized_height and resized_width"),
    ({**IMAGE, "resized_height": 64, "resized_width": 64, "max_pixels": 4096}, {}, "no other limit"),
    ({**IMAGE, "resized_height": 0, "resized_width": 64}, {}, "resized_height is 0"),
    ({**IMAGE, "resized_height": 2000, "resized_width": 2000}, {}, "outside the 1024 to 262144 pixels"),
    ({**VIDEO, "resized_height": 640, "resized_width": 640}, {}, "outside the 1 to 400000 pixels"),
    ({**VIDEO, "min_pixels": 90_000}, {}, "each frame of the video is asked for 90000 to 16667"),
    ({**VIDEO, "total_pixels": 2048}, {}, "one image token takes 1024"), ({**VIDEO, "max_pixels": -1}, {}, "positive"),
    ({**VIDEO, "nframes": 5}, {}, "multiple of 2"), ({**VIDEO, "nframes": 26}, {}, "up to its 24 frames"),
    ({**VIDEO, "nframes": 4, "fps": 1}, {}, "one of the two"),
    ({**VIDEO, "nframes": 4, "num_frames": 4}, {}, "one of the two"),
    ({**VIDEO, "min_frames": 6}, {}, "min_frames of a video has no effect"),
    ({**VIDEO, "nframes": 4, "max_frames": 6}, {}, "max_frames of a video has no effect"),
    ({**VIDEO, "fps": 1, "max_frames": 41}, {}, "above the 40"),
    ({**VIDEO, "fps": 1, "min_frames": 41}, {}, "at least 41"),
    ({**VIDEO, "fps": 1, "min_frames": 9, "max_frames": 8}, {}, "exchange or widen"),
    ({**VIDEO, "video_start": 6}, {}, "6.00 seconds"),
    ({**VIDEO, "video_start": 3, "video_end": 2}, {}, "widen the range"),
    ({**VIDEO, "video_start": -1}, {}, "video_start of a video is -1"),
    ({**VIDEO, "video_end": math.nan}, {}, "video_end"),
    ({"type": "video", "video": FRAMES, "video_end": 2}, {}, "without a frame_rate"),
    (VIDEO, {"max_pixels": 4096}, "give max_video_pixels"), (IMAGE, {"max_video_pixels": 4096}, "give max_pixels"),
    (VIDEO, {"max_video_pixels": 0}, "max_video_pixels is 0"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_unusable_wishes(number: int) -> None:
    part, limits, words = REFUSED[number]
    with pytest.raises(InputError, match=words) as caught:
        opened(part, limits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wish", [{"max_pixels": 4096}, {"resized_height": 64, "resized_width": 64}])
def test_images_of_one_size_take_no_wishes(wish: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no effect"):
        opened({**IMAGE, **wish}, spec=CropSpec())
