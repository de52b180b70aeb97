"""Images and videos through the vision encoder, with the features of the latest kept for later turns.

Videos are encoded one temporal patch at a time: attention in the encoder stays within a temporal patch (transformers
gives it `cu_seqlens` of one frame each), so this is exact, and memory follows one frame.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ...targets.errors import InputError
from ..engines.contract import Vision
from ..generation.timings import Timings
from ..process.cores import at_most
from ..process.forks import computing
from ..process.interrupt import in_turn
from ..process.look_ahead import one_ahead
from ..prompt.messages import Messages, find_media
from ..prompt.prompt_parts import VideoLayout
from ..prompt.requests import EncodedImage, EncodedVideo
from .feature_shelf import FeatureShelf
from .frames import VideoLimits, open_clip
from .image_files import ImageLimits, decode_image, read_image
from .images import Grid, Patches
from .medium import Medium, Picture, layout_of
from .no_images import refuse
from .pixels import PixelSpec
from .seen import Identity, Seen, SeenSources, identify_video
from .video import VideoSpec, video_grid, video_patches
from .wishes import check_limits, image_wishes, sample_clip, video_wishes, wished_size

Pieces: TypeAlias = Generator[tuple[Hashable, Patches], None, None]
Reading: TypeAlias = Callable[[Pieces], AbstractContextManager[Iterator[tuple[Hashable, Patches]]]]

FEATURE_BYTES = 256_000_000  # of the latest images: about 7,800 tokens of a model with 2 billion parameters


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
        self.ahead = threads != 1  # whether the next is read while one is encoded, in a thread more than the engine's
        self._lock, self._turn = threading.Lock(), threading.Lock()  # of the features; of the engine, image by image
        self._features: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._seen = SeenSources()

    def open(
        self, messages: Messages, timings: Timings, limits: Mapping[str, Any] | None = None
    ) -> tuple[list[Medium], list[Medium]]:
        """The images and the videos of a conversation; InputError for unusable ones, before anything is encoded.

        Images are known by their headers, where these suffice and the file looks whole: damage within is an InputError
        of `encode`. `limits` are those of MEDIA_LIMITS, for media whose parts have none of their own.
        """
        started, limits = time.perf_counter(), limits or {}
        pictures, clips = find_media(messages, "image"), find_media(messages, "video")
        if not self.image_spec.takes_images and (given := [name for name in limits if limits[name] is not None]):
            raise InputError(f"{given[0]} has no effect on a model that takes no images; leave it out")
        check_limits(limits, images=len(pictures), videos=len(clips))
        with at_most(self.threads):
            images = [
                self._open_image(source, part, limits, first=index == 0)
                for index, (source, part) in enumerate(pictures)
            ]
            videos = [self._open_video(source, part, limits) for source, part in clips]
        timings.image_ms += 1000 * (time.perf_counter() - started)
        return images, videos

    def encode(
        self, images: Sequence[Medium], videos: Sequence[Medium], timings: Timings
    ) -> tuple[list[EncodedImage], list[EncodedVideo]]:
        """Features of images, and of all temporal patches of videos; Interrupted between two of them, or within.

        The next is read while one is encoded, unless the caller asked for one thread.
        """
        media: dict[Hashable, Medium] = {}
        for medium in (*images, *videos):
            media.setdefault(medium.key, medium)  # what is there twice is read once
        made: dict[Hashable, list[EncodedImage]] = {key: [] for key in media}
        several = sum(medium.pieces for medium in media.values()) > 1
        reading: Reading = one_ahead if several and self.ahead else closing
        with at_most(self.threads), reading(self._read(media, made)) as pieces:
            self._encode(media, pieces, made, timings)
        encoded = [image for medium in images for image in made[medium.key]]
        return encoded, [EncodedVideo(layout_of(medium), tuple(made[medium.key])) for medium in videos]

    def cut(self, source: Any, *, video: bool = False, max_pixels: int | None = None) -> tuple[Patches, Grid]:
        """All patches of an image or a video and their grid (t, h, w), without encoding them.

        `max_pixels` is for an image, in place of the bundle's own limit.
        """
        with at_most(self.threads):
            if not video:
                medium = self._open_image(source, {}, {"max_pixels": max_pixels}, first=True)
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

    def _open_image(self, source: Any, part: Mapping[str, Any], wishes: Mapping[str, Any], *, first: bool) -> Medium:
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
        picture = Picture(name, content, spec, limits)
        if (seen := self._seen.get(identity) or self._recalled(identity)) is not None:
            return Medium(seen.grid, partial(picture.patches, seen.grid, []), identity=identity)
        return picture.planned(identity, first=first)

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

    def _read(self, media: Mapping[Hashable, Medium], made: dict[Hashable, list[EncodedImage]]) -> Pieces:
        """The patches of media whose features are not at hand; those of the others are put into `made`."""
        for key, medium in media.items():
            if (kept := self._at_hand(medium)) is not None:
                made[key] = [*kept]
                continue
            for patches in medium.patches():
                yield key, patches

    def _encode(
        self,
        media: Mapping[Hashable, Medium],
        pieces: Iterator[tuple[Hashable, Patches]],
        made: Mapping[Hashable, list[EncodedImage]],
        timings: Timings,
    ) -> None:
        started = time.perf_counter()
        for key, patches in pieces:
            medium, encoded, prepared = media[key], made[key], time.perf_counter()
            encoded.append(self._features_of(patches, medium.grid))
            del patches  # in front of the one behind the next, which is read from here on
            timings.image_ms += 1000 * (prepared - started)
            started = time.perf_counter()
            timings.vision_ms += 1000 * (started - prepared)
            if len(encoded) == medium.pieces:
                self._remember(medium, encoded)

    def _remember(self, medium: Medium, encoded: Sequence[EncodedImage]) -> None:
        seen = Seen(medium.grid, medium.layout, tuple(image.key for image in encoded))
        self._seen.add(medium.identity, seen)
        if self.shelf is not None and medium.identity is not None:
            self.shelf.put(medium.identity, seen, encoded)

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
