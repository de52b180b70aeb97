"""Images and videos through the vision encoder, with the features of the latest kept for later turns.

Videos are encoded one temporal patch at a time: attention in the encoder stays within a temporal patch (transformers
gives it `cu_seqlens` of one frame each), so this is exact, and memory follows one frame.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ...targets.errors import InputError
from ..engines.contract import Vision
from ..generation.timings import Timings
from ..process.cores import at_most
from ..process.forks import computing
from ..process.interrupt import in_turn
from ..prompt.messages import Messages, find_media
from ..prompt.prompt_parts import VideoLayout
from ..prompt.requests import EncodedImage, EncodedVideo
from ..values import finite, whole
from .feature_shelf import FeatureShelf
from .frames import Clip, VideoLimits, open_clip
from .image_files import ImageLimits, decode_image, read_image
from .images import Grid, Patches
from .no_images import refuse
from .pixels import PixelSpec, image_grid, preprocess
from .seen import (
    Identity,
    Seen,
    SeenSources,
    identify_video,
)
from .video import (
    UNKNOWN_RATE,
    Indices,
    VideoSpec,
    check_number,
    video_grid,
    video_patches,
)
from .wishes import (
    check_limits,
    frame_range,
    image_wishes,
    video_wishes,
    wished_size,
)

FEATURE_BYTES = 256_000_000  # of the latest images: about 7,800 tokens of a model with 2 billion parameters


@dataclass(frozen=True)
class Medium:
    """An image or a video that is opened but not cut into patches yet."""

    grid: Grid  # of the image, or of each temporal patch of the video
    patches: Callable[[], Iterator[Patches]]
    layout: VideoLayout | None = None  # of a video
    identity: Identity | None = None  # of the source, known without decoding it


class MediaEncoder:
    """Opens, cuts and encodes images and videos; the same pixels are encoded once while they are among the latest."""

    def __init__(
        self,
        vision: Vision,
        image_spec: PixelSpec,
        video_spec: VideoSpec | None,
        image_limits: ImageLimits,
        video_limits: VideoLimits,
        threads: int | None = None,
        feature_bytes: int = FEATURE_BYTES,
        shelf: FeatureShelf | None = None,
    ) -> None:
        """`video_spec` None: the model takes no videos. `threads` bound what decodes and resizes, None to the cores;
        `feature_bytes` the features that are kept, but for those that the latest conversation uses. A `shelf` has those
        of earlier runs, too.
        """
        self.vision, self.image_spec, self.video_spec = vision, image_spec, video_spec
        self.image_limits, self.video_limits, self.threads = image_limits, video_limits, threads
        self.most_bytes, self.shelf = feature_bytes, shelf
        self._lock, self._turn = threading.Lock(), threading.Lock()  # of the features; of the engine, image by image
        self._features: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._seen = SeenSources()

    def open(
        self, messages: Messages, timings: Timings, limits: Mapping[str, Any] | None = None
    ) -> tuple[list[Medium], list[Medium]]:
        """The images and the videos of a conversation; InputError for unusable ones, before anything is encoded.

        `limits` are those of MEDIA_LIMITS, for media whose parts have none of their own.
        """
        started, limits = time.perf_counter(), limits or {}
        pictures, clips = find_media(messages, "image"), find_media(messages, "video")
        if not self.image_spec.takes_images and (given := [name for name in limits if limits[name] is not None]):
            raise InputError(f"{given[0]} has no effect on a model that takes no images; leave it out")
        check_limits(limits, images=len(pictures), videos=len(clips))
        with at_most(self.threads):
            images = [self._open_image(source, part, limits) for source, part in pictures]
            videos = [self._open_video(source, part, limits) for source, part in clips]
        timings.image_ms += 1000 * (time.perf_counter() - started)
        return images, videos

    def encode(
        self, images: Sequence[Medium], videos: Sequence[Medium], timings: Timings
    ) -> tuple[list[EncodedImage], list[EncodedVideo]]:
        """Features of images, and of all temporal patches of videos; Interrupted between two of them, or within."""
        with at_most(self.threads):
            encoded = [image for medium in images for image in self._encode(medium, timings)]
            return encoded, [EncodedVideo(layout_of(medium), self._encode(medium, timings)) for medium in videos]

    def cut(self, source: Any, *, video: bool = False, max_pixels: int | None = None) -> tuple[Patches, Grid]:
        """All patches of an image or a video and their grid (t, h, w), without encoding them.

        `max_pixels` is for an image, in place of the bundle's own limit.
        """
        with at_most(self.threads):
            if not video:
                medium = self._open_image(source, {}, {"max_pixels": max_pixels})
                return next(medium.patches()), medium.grid
            medium = self._open_video(source, {}, {})
            return np.concatenate(list(medium.patches())), layout_of(medium).grid

    def trim(self, used: Sequence[EncodedImage]) -> None:
        """Drop the oldest features over the limit, but none of those that the latest conversation uses."""
        keys = {image.key for image in used}
        with self._lock:
            excess = sum(image.features.nbytes for image in self._features.values()) - self.most_bytes
            while excess > 0 and next(iter(self._features)) not in keys:
                excess -= self._features.popitem(last=False)[1].features.nbytes

    def forget(self) -> None:
        """Drop all features."""
        with self._lock:
            self._features.clear()
        self._seen.clear()

    def _open_image(self, source: Any, part: Mapping[str, Any], wishes: Mapping[str, Any]) -> Medium:
        """An image by its bytes, or its pixels; it is decoded only where its features are not at hand."""
        if not self.image_spec.takes_images:
            refuse()
        spec, limits = image_wishes(self.image_spec, part, wishes), self.image_limits
        name, content = read_image(source, limits)
        if isinstance(content, Image.Image):
            content = decode_image(name, content, limits)  # a copy, since the caller may draw on
            identity: Identity = (content.size, hashlib.sha256(content.tobytes()).digest(), spec)
        else:
            identity = (hashlib.sha256(content).digest(), spec)
        if (seen := self._seen.get(identity) or self._recalled(identity)) is not None:
            pixels = partial(decode_image, name, content, limits)
            return Medium(seen.grid, lambda: iter([preprocess(pixels(), spec)[0]]), identity=identity)
        image = content if isinstance(content, Image.Image) else decode_image(name, content, limits)
        grid = image_grid(image.height, image.width, spec)
        return Medium(grid, lambda: iter([preprocess(image, spec)[0]]), identity=identity)

    def _open_video(self, source: Any, part: Mapping[str, Any], limits: Mapping[str, Any]) -> Medium:
        if not self.image_spec.takes_images:
            refuse()
        if self.video_spec is None:
            raise InputError("this bundle takes no videos; send frames as images")
        spec = video_wishes(self.video_spec, part, limits)
        source, identity = identify_video(source, part, spec, self.video_limits)
        if (seen := self._seen.get(identity) or self._recalled(identity)) is not None:
            again = partial(self._open_clip, source, part, spec, identity)
            return Medium(seen.grid, lambda: again().patches(), seen.layout, identity)
        return self._open_clip(source, part, spec, identity)

    def _open_clip(self, source: Any, part: Mapping[str, Any], spec: VideoSpec, identity: Identity | None) -> Medium:
        clip = open_clip(source, self.video_limits)
        indices, seconds = sample_clip(clip, part, spec)
        width, height = clip.size()
        size = wished_size(len(indices), height, width, spec, part)
        grid = video_grid(len(indices), size, spec)
        patches = partial(video_patches, size=size, spec=spec.patches)
        return Medium((1, *grid[1:]), lambda: patches(clip.frames(indices)), VideoLayout(grid, seconds), identity)

    def _at_hand(self, medium: Medium) -> tuple[EncodedImage, ...] | None:
        """The features of a source that was encoded before, if all are still kept."""
        seen = self._seen.get(medium.identity)
        kept = None if seen is None else self._all_of(seen)
        if seen is not None and kept is None and self._recalled(medium.identity) is not None:
            kept = self._all_of(seen)
        return kept

    def _all_of(self, seen: Seen) -> tuple[EncodedImage, ...] | None:
        with self._lock:
            if not all(key in self._features for key in seen.keys):
                return None
            for key in seen.keys:
                self._features.move_to_end(key)
            return tuple(self._features[key] for key in seen.keys)

    def _recalled(self, identity: Identity | None) -> Seen | None:
        """What the shelf has of a source, whose features are taken from there."""
        found = None if identity is None or self.shelf is None else self.shelf.find(identity)
        if found is None:
            return None
        seen, images = found
        with self._lock:
            self._features.update((image.key, image) for image in images)
        self._seen.add(identity, seen)
        return seen

    def _encode(self, medium: Medium, timings: Timings) -> tuple[EncodedImage, ...]:
        if (kept := self._at_hand(medium)) is not None:
            return kept
        encoded = []
        started = time.perf_counter()
        for patches in medium.patches():
            prepared = time.perf_counter()
            encoded.append(self._features_of(patches, medium.grid))
            timings.image_ms += 1000 * (prepared - started)
            started = time.perf_counter()
            timings.vision_ms += 1000 * (started - prepared)
        seen = Seen(medium.grid, medium.layout, tuple(image.key for image in encoded))
        self._seen.add(medium.identity, seen)
        if self.shelf is not None and medium.identity is not None:
            self.shelf.put(medium.identity, seen, encoded)
        return tuple(encoded)

    def _features_of(self, patches: Patches, grid: Grid) -> EncodedImage:
        key = hashlib.sha256(patches.data).digest() + bytes(str(grid), "ascii")
        if (kept := self._kept(key)) is not None:
            return kept
        with in_turn(self._turn):
            if (kept := self._kept(key)) is not None:  # made while this one waited
                return kept
            with computing():
                made = EncodedImage(key, grid, self.vision(patches, grid))
        with self._lock:
            self._features[key] = made
        return made

    def _kept(self, key: bytes) -> EncodedImage | None:
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
            return self._features.get(key)


def layout_of(medium: Medium) -> VideoLayout:
    """The layout of a medium that is a video."""
    assert medium.layout is not None
    return medium.layout


def sample_clip(clip: Clip, part: Mapping[str, Any], spec: VideoSpec) -> tuple[Indices, tuple[float, ...]]:
    """Indices of the frames to take, and the seconds of each temporal patch.

    A part of type video may wish for `fps` within `min_frames` and `max_frames`, for `num_frames` or, as qwen-vl-utils
    writes it, for an even `nframes`; name the `frame_rate` of the video; and begin and end at `video_start` and
    `video_end`, in seconds. A list of frames is taken whole without a wish, as HF does with `do_sample_frames=False`.
    """
    step = spec.patches.temporal_patch_size
    fps, given_rate = (finite(f"{key} of a video", part[key]) if key in part else None for key in ("fps", "frame_rate"))
    known_rate = given_rate or clip.rate
    first, total = frame_range(clip.total, known_rate, clip.times if given_rate is None else None, part)
    # How many frames a part asks for by number.
    given = {key: whole(f"{key} of a video", part[key], 1) for key in ("num_frames", "nframes") if key in part}
    if len(given) > 1:
        raise InputError("a video is asked for num_frames and for nframes; give one of the two")
    if (wanted := given.get("nframes")) is not None and (wanted % step or wanted > total):
        raise InputError(f"nframes of a video is {wanted}; expected a multiple of {step} up to its {total} frames "
                         "(num_frames takes any number)")  # fmt: skip
    num_frames = next(iter(given.values()), None)
    bounds = [key for key in ("min_frames", "max_frames") if key in part]
    if bounds and (num_frames is not None or (clip.chosen and fps is None)):
        raise InputError(f"{bounds[0]} of a video has no effect without fps; give fps with it, or leave it out")
    rate = known_rate or UNKNOWN_RATE
    if clip.chosen and fps is None and num_frames is None:
        indices = np.arange(check_number(total, spec)) + first
    else:
        indices = spec.sample(total, rate, fps=fps, num_frames=num_frames) + first
    return indices, spec.seconds(indices, total, rate, clip.times if given_rate is None else None)
