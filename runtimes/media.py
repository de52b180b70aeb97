"""Images and videos through the vision encoder, with the features of the latest kept for later turns.

Videos are encoded one temporal patch at a time: attention in the encoder stays within a temporal patch (transformers
gives it `cu_seqlens` of one frame each), so this is exact, and memory follows one frame.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..targets.errors import InputError
from .engine import ImageFeatures
from .forks import computing
from .frames import Clip, VideoLimits, open_clip
from .images import Grid, ImageLimits, Patches, open_image
from .messages import Messages, find_media
from .pixels import PixelSpec, image_grid, preprocess
from .prompt import VideoLayout
from .requests import EncodedImage, EncodedVideo
from .timings import Timings
from .video import (
    UNKNOWN_RATE,
    Indices,
    VideoSpec,
    frame_seconds,
    patch_seconds,
    sample_frames,
    video_grid,
    video_patches,
    video_size,
)

CACHED_TOKENS = 8192  # of the latest images and frames, so that a later turn does not encode them again


Vision: TypeAlias = Callable[[Patches, Grid], ImageFeatures]  # a VisionEncoder, or PyTorch


@dataclass(frozen=True)
class Medium:
    """An image or a video that is opened but not cut into patches yet."""

    grid: Grid  # of the image, or of each temporal patch of the video
    patches: Callable[[], Iterator[Patches]]
    layout: VideoLayout | None = None  # of a video


class MediaEncoder:
    """Opens, cuts and encodes images and videos; the same pixels are encoded once while they are among the latest."""

    def __init__(
        self,
        vision: Vision,
        image_spec: PixelSpec,
        video_spec: VideoSpec | None,
        image_limits: ImageLimits,
        video_limits: VideoLimits,
    ) -> None:
        """`video_spec` None: the model takes no videos."""
        self.vision, self.image_spec, self.video_spec = vision, image_spec, video_spec
        self.image_limits, self.video_limits = image_limits, video_limits
        self._lock = threading.Lock()  # of the features, and of the engine, which encodes one image at a time
        self._features: OrderedDict[bytes, EncodedImage] = OrderedDict()

    def open(self, messages: Messages, timings: Timings) -> tuple[list[Medium], list[Medium]]:
        """The images and the videos of a conversation; InputError for unusable ones, before anything is encoded."""
        started = time.perf_counter()
        images = [self._open_image(source) for source, _ in find_media(messages, "image")]
        videos = [self._open_video(source, block) for source, block in find_media(messages, "video")]
        timings.image_ms += 1000 * (time.perf_counter() - started)
        return images, videos

    def encode(
        self, images: Sequence[Medium], videos: Sequence[Medium], timings: Timings
    ) -> tuple[list[EncodedImage], list[EncodedVideo]]:
        """Features of images, and of all temporal patches of videos."""
        encoded = [image for medium in images for image in self._encode(medium, timings)]
        return encoded, [EncodedVideo(layout_of(medium), self._encode(medium, timings)) for medium in videos]

    def cut(self, source: Any, *, video: bool = False) -> tuple[Patches, Grid]:
        """All patches of an image or a video and their grid (t, h, w), without encoding them."""
        if not video:
            medium = self._open_image(source)
            return next(medium.patches()), medium.grid
        medium = self._open_video(source, {})
        return np.concatenate(list(medium.patches())), layout_of(medium).grid

    def trim(self, used: Sequence[EncodedImage]) -> None:
        """Drop the oldest features over the limit, but none of those that the latest conversation uses."""
        keys = {image.key for image in used}
        with self._lock:
            excess = sum(len(image.features) for image in self._features.values()) - CACHED_TOKENS
            while excess > 0 and next(iter(self._features)) not in keys:
                excess -= len(self._features.popitem(last=False)[1].features)

    def forget(self) -> None:
        """Drop all features."""
        with self._lock:
            self._features.clear()

    def _open_image(self, source: Any) -> Medium:
        image = open_image(source, self.image_limits)
        grid = image_grid(image.height, image.width, self.image_spec)
        return Medium(grid, lambda: iter([preprocess(image, self.image_spec)[0]]))

    def _open_video(self, source: Any, block: Mapping[str, Any]) -> Medium:
        spec = self.video_spec
        if spec is None:
            raise InputError("this bundle takes no videos; send frames as images, or export a checkpoint that has a "
                             "video_preprocessor_config.json")  # fmt: skip
        clip = open_clip(source, self.video_limits)
        indices, seconds = sample_clip(clip, block, spec)
        width, height = clip.size()
        size = video_size(len(indices), height, width, spec)
        grid = video_grid(len(indices), size, spec)
        layout = VideoLayout(grid, seconds)
        return Medium((1, *grid[1:]), lambda: video_patches(clip.frames(indices), size, spec.patches), layout)

    def _encode(self, medium: Medium, timings: Timings) -> tuple[EncodedImage, ...]:
        encoded = []
        started = time.perf_counter()
        for patches in medium.patches():
            key = hashlib.sha256(patches.data).digest() + bytes(str(medium.grid), "ascii")
            prepared = time.perf_counter()
            with self._lock, computing():
                if key not in self._features:
                    self._features[key] = EncodedImage(key, medium.grid, self.vision(patches, medium.grid))
                self._features.move_to_end(key)
                encoded.append(self._features[key])
            timings.image_ms += 1000 * (prepared - started)
            started = time.perf_counter()
            timings.vision_ms += 1000 * (started - prepared)
        return tuple(encoded)


def layout_of(medium: Medium) -> VideoLayout:
    """The layout of a medium that is a video."""
    assert medium.layout is not None
    return medium.layout


def sample_clip(clip: Clip, block: Mapping[str, Any], spec: VideoSpec) -> tuple[Indices, tuple[float, ...]]:
    """Indices of the frames to take, and the seconds of each temporal patch.

    A block of type video may wish for `fps` or `num_frames`, and name the `frame_rate` of the video. A list of frames
    is taken whole without a wish, as HF does with `do_sample_frames=False`.
    """
    fps, num_frames, given_rate = (_positive(block, key) for key in ("fps", "num_frames", "frame_rate"))
    rate = given_rate or clip.rate or UNKNOWN_RATE
    if num_frames is not None and num_frames != int(num_frames):
        raise InputError(f"a block of type video has num_frames {num_frames}; expected a whole number")
    if clip.chosen and fps is None and num_frames is None:
        num_frames = clip.total
    count = None if num_frames is None else int(num_frames)
    indices = sample_frames(clip.total, rate, spec, fps=fps, num_frames=count)
    step = spec.patches.temporal_patch_size
    if clip.times is not None and given_rate is None:
        return indices, patch_seconds([clip.times[index] for index in indices], step)
    return indices, frame_seconds(indices, rate, step)


def _positive(block: Mapping[str, Any], key: str) -> float | None:
    value = block.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"a block of type video has {key} {value!r}; expected a positive number")
    return value
