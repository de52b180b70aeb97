"""Videos into patches, to the bit as the Hugging Face video processor of the Qwen models (Qwen3VLVideoProcessor).

Formulas are those of transformers 5.23, models/qwen3_vl/video_processing_qwen3_vl.py. Frames are resized by the kernel
that resizes images (`_upsample_bicubic2d_aa` on uint8), normalized by the same table, and cut in the same order; what
differs is that the pixel range counts all frames together, and that a patch spans frames that follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...targets.errors import InputError
from .image_files import MAX_ASPECT_RATIO, planes_of
from .images import LARGEST, LIMITS, Grid, ImageSpec, Patches, is_number, patchify
from .resize import UInt8, resize_bicubic
from .sizing import grown, rounded, shrunk

Indices: TypeAlias = npt.NDArray[np.int64]

UNKNOWN_RATE = 24.0  # frames a second that HF assumes of frames that come without a rate
CONSTANTS = ("patch_size", "temporal_patch_size", "merge_size", "rescale_factor", "min_pixels", "max_pixels")
SAMPLING = ("fps", "min_frames", "max_frames")
DEFAULT_PIXELS = (128 * 32 * 32, 768 * 32 * 32)
HALF = (0.5, 0.5, 0.5)
# Of Qwen3VLVideoProcessor.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": HALF, "image_std": HALF,
    "size": {"shortest_edge": DEFAULT_PIXELS[0], "longest_edge": DEFAULT_PIXELS[1]},
    "rescale_factor": 1 / 255, "fps": 2, "min_frames": 4, "max_frames": 768,
}  # fmt: skip


@dataclass(frozen=True)
class VideoSpec:
    """How videos are sampled and cut: `patches.min_pixels` and `max_pixels` are areas of all frames together."""

    shared: ClassVar[bool] = True  # the pixel range, by all frames

    patches: ImageSpec = field(default_factory=lambda: _pixels(*DEFAULT_PIXELS))
    fps: float = 2.0  # frames taken of each second
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self) -> None:
        if not is_number(self.fps) or self.fps <= 0:
            raise InputError(f"video fps is {self.fps}; expected a positive number")
        whole = type(self.min_frames) is int and type(self.max_frames) is int
        if not whole or not 1 <= self.min_frames <= self.max_frames < LARGEST:
            raise InputError(
                f"video min_frames {self.min_frames} and max_frames {self.max_frames} are no range of at least 1 frame"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VideoSpec:
        """Read a video_preprocessor_config.json, what it leaves out as Qwen3VLVideoProcessor has it.

        Raises InputError for steps that this runtime does not do, and for values of the wrong kind.
        """
        for key, expected in (("do_sample_frames", True), ("num_frames", None), ("cap_pixels_per_frame", False)):
            found = config.get(key, expected)
            if found not in (expected, None) or (found is None and expected is True):
                raise InputError(f"video_preprocessor_config has {key} {found!r}; expected {expected!r} or nothing")
        values = {**DEFAULTS, **{key: value for key, value in config.items() if key not in dict(LIMITS)}}
        if values["size"] is None:
            raise InputError("video_preprocessor_config has no size; expected shortest_edge and longest_edge")
        return cls(ImageSpec.from_config(values), **{name: values[name] for name in SAMPLING})

    def with_pixels(self, max_pixels: int) -> VideoSpec:
        """The same spec with at most `max_pixels` in all frames, also fewer than the checkpoint's own minimum."""
        least = min(self.patches.factor**2, self.patches.min_pixels)
        wide = replace(self.patches, allowed_pixels=(least, self.patches.max_pixels))
        return replace(self, patches=wide.with_pixels(max_pixels=max_pixels))

    @property
    def max_tokens(self) -> int:
        """Most video tokens that one video takes, where its frames are not too many to shrink that far."""
        return self.patches.max_pixels // (self.patches.factor**2 * self.patches.temporal_patch_size)

    def sample(self, total: int, rate: float, *, fps: float | None = None, num_frames: int | None = None) -> Indices:
        """Indices of the frames to take of `total` at `rate` frames a second, as `sample_frames`."""
        return sample_frames(total, rate, self, fps=fps, num_frames=num_frames)

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) of `frames` frames after resizing, as `video_size`."""
        return video_size(frames, height, width, self)

    def frame_range(self, frames: int) -> tuple[float, float]:
        """The pixel range of each of `frames` frames."""
        return self.patches.min_pixels / frames, self.patches.max_pixels / frames

    def seconds(
        self, indices: Indices, total: int, rate: float, times: Sequence[float] | None = None
    ) -> tuple[float, ...]:
        """Seconds of each temporal patch, from `times` of all frames where their durations differ."""
        step = self.patches.temporal_patch_size
        if times is not None:
            return patch_seconds([times[index] for index in indices], step)
        return frame_seconds(indices, rate, step)


def video_constants(spec: VideoSpec) -> dict[str, Any]:
    """What a manifest says about videos; `video_spec` of spaced_video.py reads it."""
    patches = spec.patches
    constants = {name: getattr(patches, name) for name in CONSTANTS}
    lists = {"mean": list(patches.mean), "std": list(patches.std)}
    sampling = {name: getattr(spec, name) for name in SAMPLING}
    return {**constants, **lists, **sampling, "max_tokens": spec.max_tokens}


def _pixels(least: int, most: int) -> ImageSpec:
    return ImageSpec(min_pixels=least, max_pixels=most)


def sample_frames(
    total: int, rate: float, spec: VideoSpec, *, fps: float | None = None, num_frames: int | None = None
) -> Indices:
    """Indices of the frames to take, evenly over a video of `total` frames at `rate` frames a second.

    `num_frames` of them, or else `fps` for each second (the spec's own unless given) within the spec's min_frames and
    max_frames. As `Qwen3VLVideoProcessor.sample_frames`: more `num_frames` than the video has repeat some. Raises
    InputError for both wishes at once, and for wishes out of range.
    """
    rate_wished = wished_rate(spec, fps, num_frames)
    if num_frames is None:
        wanted = min(total / rate * rate_wished, float(spec.max_frames))  # before int(), which infinity has none of
        num_frames = min(max(int(wanted), spec.min_frames), spec.max_frames, total)
    indices: Indices = np.linspace(0, total - 1, check_number(num_frames, spec)).round().astype(np.int64)
    return indices


def wished_rate(spec: VideoSpec, fps: float | None, num_frames: int | None = None) -> float:
    """Frames to take of each second; InputError for a number of them besides, and for none that is positive."""
    if fps is not None and num_frames is not None:
        raise InputError(f"a video is asked for fps {fps} and for {num_frames} frames; give one of the two")
    chosen = spec.fps if fps is None else fps
    if not 0 < chosen < math.inf:
        raise InputError(f"a video is asked for fps {chosen}; expected a positive number")
    return chosen


def check_number(num_frames: int, spec: VideoSpec) -> int:
    """The number, or InputError for none and for more frames than a video may have."""
    if not 1 <= num_frames <= spec.max_frames:
        raise InputError(f"a video is asked for {num_frames} frames; expected 1 to {spec.max_frames}")
    return num_frames


def frame_seconds(indices: Sequence[int] | Indices, rate: float, temporal_patch_size: int) -> tuple[float, ...]:
    """Seconds of each temporal patch: the mean of its first and its last frame (Qwen3VLProcessor)."""
    times = [int(index) / rate for index in indices]
    return patch_seconds(times, temporal_patch_size)


def patch_seconds(times: Sequence[float], temporal_patch_size: int) -> tuple[float, ...]:
    """Seconds of each temporal patch from those of the frames; the last frame fills an incomplete patch."""
    padded = [*times, *[times[-1]] * (-len(times) % temporal_patch_size)]
    firsts, lasts = padded[::temporal_patch_size], padded[temporal_patch_size - 1 :: temporal_patch_size]
    return tuple((first + last) / 2 for first, last in zip(firsts, lasts, strict=True))


def video_size(frames: int, height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """The size (height, width) that HF's `smart_resize` gives the frames; raises InputError where HF refuses.

    Multiples of `spec.patches.factor`, with the area of all frames in the spec's range where possible.
    """
    patches, factor, step = spec.patches, spec.patches.factor, spec.patches.temporal_patch_size
    check_frames(frames, spec)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InputError(f"the frames are {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times "
                         "the other, crop them")  # fmt: skip
    size = rounded(height, width, factor)
    area = round(frames / step) * step * prod(size)
    if area > patches.max_pixels:
        return shrunk(height, width, factor, patches.max_pixels, frames)
    if area < patches.min_pixels:
        return grown(height, width, factor, patches.min_pixels, frames)
    return size


def check_frames(frames: int, spec: VideoSpec) -> None:
    """Raise InputError for fewer frames than a temporal patch has."""
    step = spec.patches.temporal_patch_size
    if frames < step:
        raise InputError(f"the video gives {frames} frame; at least {step} are needed, send one as an image instead")


def video_grid(frames: int, size: tuple[int, int], spec: VideoSpec) -> Grid:
    """The grid (t, h, w) of a video with frames of `size` (height, width) after resizing."""
    patches = spec.patches
    return -(-frames // patches.temporal_patch_size), size[0] // patches.patch_size, size[1] // patches.patch_size


def video_patches(frames: Iterable[Image.Image], size: tuple[int, int], spec: ImageSpec) -> Iterator[Patches]:
    """Patches [grid_h*grid_w, 3*temporal*patch*patch] of one temporal patch after the other.

    `frames` are RGB images of one size, resized to `size` (height, width) one at a time, so that memory holds one
    temporal patch. The last frame fills an incomplete one.
    """
    group: list[UInt8] = []
    for frame in frames:
        group.append(resize_bicubic(planes_of(frame), *size))
        if len(group) == spec.temporal_patch_size:
            yield patchify(group, spec)[0]
            group = []
    if group:
        yield patchify([*group, *[group[-1]] * (spec.temporal_patch_size - len(group))], spec)[0]
