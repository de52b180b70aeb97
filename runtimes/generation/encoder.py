"""A loaded bundle without a decoder: images and clips to features."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from msgspec import UNSET
from PIL import Image

from ...targets.errors import InputError
from ..bundle.input_sections import Clips
from ..bundle.opening import Bundle
from ..engines.contract import Floats, Vision
from ..engines.engine_table import Wishes, open_vision
from ..engines.run_wishes import check_wishes, made_of, remade_on_cpu
from ..media.clips import (
    ClipSpec,
    PatchOrder,
    clip_spec,
    cut_clip,
    plan_clip,
    with_wishes,
)
from ..media.frames import (
    Clip,
    VideoLimits,
    check_limit_objects,
    open_clip,
)
from ..media.image_files import ImageLimits, open_image
from ..media.images import Grid, ImageSpec, Patches, smart_resize
from ..media.picture_formats import decoded
from ..media.pixels import image_spec
from ..media.resize import UInt8, resize_bicubic
from ..media.sources import ImageSource, opened_source
from ..process.cores import at_most
from ..process.cpu import told_if_lacking
from ..process.forks import OfOneProcess, PerProcess, computing
from ..storage.array_files import write_arrays
from ..storage.new_file import new_file
from ..tuning.tuning import USUAL, Tuning


@dataclass(frozen=True)
class Features:
    """What the encoder makes of one image or clip.

    `grid` is (frames, height, width) in patches, `features` float32 [tokens, hidden], `deepstack` float32
    [taps, tokens, hidden] or None; `image_ms` milliseconds of decoding, resizing and cutting, `vision_ms` of encoding.
    """

    grid: Grid  # frames, height and width in patches
    features: Floats  # [tokens, hidden]
    deepstack: Floats | None  # [taps, tokens, hidden]
    image_ms: float
    vision_ms: float

    def __len__(self) -> int:
        return len(self.features)


class Encoder(OfOneProcess):
    """A bundle of a vision encoder. Each image or clip goes through the graph by itself, so memory follows the largest.

    Several in one call of the original class, packed, give the same: attention stays within each.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        context: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        image_limits: ImageLimits | None = None,
        profile: bool = False,
        native: bool | None = None,
        device: str | None = None,
        tuning: Tuning = USUAL,
    ) -> None:
        """`context`: most patches of one image or clip; the bias of attention takes 4 bytes for each pair of them."""
        manifest = bundle.manifest
        if manifest.encoder is UNSET:
            raise InputError(f"the bundle {bundle.path} answers questions; load it as a model")
        told_if_lacking(manifest.options.cpu_features)
        self.bundle, self.manifest = bundle, manifest
        self.image_limits = image_limits or ImageLimits()
        spec = image_spec(manifest)
        assert isinstance(spec, ImageSpec)  # as agreement.py has seen
        assert isinstance(manifest.video, Clips)
        self.image_spec = spec.with_pixels(min_pixels=min_pixels, max_pixels=max_pixels)
        self.clip_spec: ClipSpec = clip_spec(manifest.video)
        self.order: PatchOrder = manifest.encoder.patch_order
        self.context = bundle.context(context, "patches")
        wishes = tuning.applied(Wishes(threads=threads, profile=profile, native=native, device=device))
        self.threads = wishes.threads
        check_wishes(bundle, wishes)
        check_limit_objects(image_limits, None)
        make = partial(_open, wishes=wishes)
        self._engine = PerProcess(partial(made_of, bundle, make), remade_on_cpu(bundle, wishes, make))

    @property
    def vision(self) -> Vision:
        """The vision encoder."""
        return self._engine.get()[0]

    def ask(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InputError: there is no decoder."""
        raise InputError(f"the bundle {self.bundle.path} has no decoder: it makes features of images and cannot "
                         "be asked; use image, clip or features")  # fmt: skip

    generate = ask

    def features(self, images: Iterable[Any] = (), clips: Iterable[Any] = ()) -> list[Features]:
        """Encode images (paths, bytes or PIL images) and clips (what `open_clip` takes), one by one.

        Raises InputError for what cannot be read, or has more patches than the bundle holds.
        """
        return [*(self.image(source) for source in images), *(self.clip(source) for source in clips)]

    def image(self, source: Any) -> Features:
        """Encode one image. Raises InputError as `features` does."""
        started = time.perf_counter()
        return self._encode(*self.cut_image(source), started)

    def clip(self, source: Any, *, fps: float | None = None, num_frames: int | None = None) -> Features:
        """Encode a clip: a list of frames of one size, an animated image or a video file.

        Of its frames `num_frames` are taken, or `fps` for each second; by default what the checkpoint's processor
        takes. Raises InputError as `features` does.
        """
        started = time.perf_counter()
        return self._encode(*self.cut_clip(source, fps=fps, num_frames=num_frames), started)

    def cut(self, source: Any, *, video: bool = False, max_pixels: int | None = None) -> tuple[Patches, Grid]:
        """The patches of an image or a clip, as the graph takes them, and their grid; `max_pixels` is for an image."""
        return self.cut_clip(source) if video else self.cut_image(source, max_pixels=max_pixels)

    def cut_image(self, source: Any, *, max_pixels: int | None = None) -> tuple[Patches, Grid]:
        """The patches of an image. The alpha channel of an image object is dropped, as the original processor does."""
        image = open_image(_opaque(source, self.image_limits), self.image_limits)
        height, width = smart_resize(image.height, image.width, self.image_spec.with_pixels(max_pixels=max_pixels))
        self._check(f"the image of {image.width} x {image.height} pixels", 1, height, width, self.image_spec)
        with at_most(self.threads):
            planes = _resized(image, height, width)
        return cut_clip(np.stack([planes] * self.image_spec.temporal_patch_size), self.image_spec, self.order)

    def cut_clip(self, source: Any, *, fps: float | None = None, num_frames: int | None = None) -> tuple[Patches, Grid]:
        """The patches of a clip."""
        wishes = with_wishes(self.clip_spec, fps=fps, num_frames=num_frames)
        opened = [_opaque(frame, self.image_limits) for frame in source] if isinstance(source, list | tuple) else source
        with at_most(self.threads):
            return self._cut_clip(open_clip(opened, VideoLimits(frame=self.image_limits)), wishes)

    def _cut_clip(self, clip: Clip, wishes: ClipSpec) -> tuple[Patches, Grid]:
        width, height = clip.size()
        plan, spec = plan_clip(clip.total, height, width, wishes, clip.rate), wishes.image
        self._check(f"the clip of {len(plan.frames)} frames", plan.grid(spec)[0], plan.height, plan.width, spec)
        frames = [_resized(frame, plan.height, plan.width) for frame in clip.frames(plan.frames)]
        return cut_clip(np.stack(frames), spec, self.order)

    def _check(self, what: str, times: int, height: int, width: int, spec: ImageSpec) -> None:
        patches = times * height * width // spec.patch_size**2
        if patches > self.context:
            raise InputError(
                f"{what} makes {patches} patches and the bundle takes up to {self.context}, since memory and time grow "
                "with their square; use fewer pixels or frames, or export with a larger --context"
            )

    def _encode(self, patches: Patches, grid: Grid, started: float) -> Features:
        cut = time.perf_counter()
        vision, turn = self._engine.get()
        with turn, computing():
            made = vision(patches, grid)
        done = time.perf_counter()
        return Features(grid, made.features, made.deepstack, 1000 * (cut - started), 1000 * (done - cut))


def _open(bundle: Bundle, wishes: Wishes) -> tuple[Vision, threading.Lock]:
    """The engine, and the lock of the thread whose turn it is: it encodes one image at a time."""
    return open_vision(bundle, wishes), threading.Lock()


def save_features(path: str | Path, items: Sequence[Features]) -> None:
    """Write features as .npz: for item 0 features_0 [tokens, hidden], grid_0 [3] and, if any, deepstack_0.

    DeepStack features are [taps, tokens, hidden]; all floats are float32, grids int64.
    A file that is there is replaced.
    """
    arrays: dict[str, Any] = {}
    for index, item in enumerate(items):
        arrays[f"features_{index}"] = item.features
        arrays[f"grid_{index}"] = np.array(item.grid, np.int64)
        if item.deepstack is not None:
            arrays[f"deepstack_{index}"] = item.deepstack
    with new_file(path) as file:
        write_arrays(file, arrays)


def _resized(image: Image.Image, height: int, width: int) -> UInt8:
    """Planes [3, height, width]."""
    return resize_bicubic(np.stack([np.asarray(band) for band in image.split()]), height, width)


def _opaque(source: ImageSource, limits: ImageLimits) -> ImageSource:
    opened = opened_source(source, "an image", limits.max_file_bytes)
    return decoded("the image", lambda: opened.convert("RGB")) if isinstance(opened, Image.Image) else opened
