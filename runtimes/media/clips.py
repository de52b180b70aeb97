"""Clips into patches as Arlow's video processor makes them: which frames, of which size, in which order of patches.

A still image is the shortest clip: one temporal patch of the same frame.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ...targets.errors import InputError
from ..bundle.input_sections import Clips
from ..values import finite, whole
from .image_files import check_aspect
from .images import Grid, ImageSpec, Patches, of_section
from .resize import UInt8
from .sizing import grown, rounded, shrunk

Indices: TypeAlias = npt.NDArray[np.int64]
PatchOrder: TypeAlias = Literal["raster", "windows"]  # windows: those of one image token side by side
STRATEGIES = ("uniform", "fps_based")


@dataclass(frozen=True)
class ClipSpec:
    """How clips become patches; the pixel range of `image` is that of one frame."""

    image: ImageSpec
    strategy: str = "uniform"
    num_frames: int | None = None  # "uniform": at most so many
    fps: float | None = None  # "fps_based": frames for each second
    max_frames: int = 768
    max_tokens: int | None = None  # of a whole clip

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(
                f"the video processor has sample_strategy {self.strategy!r}, which is not supported "
                f"(motion_adaptive draws frames at random); expected {' or '.join(map(repr, STRATEGIES))}"
            )
        for name in ("num_frames", "max_frames", "max_tokens", "fps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"the video processor has {name} {value!r}; expected a positive number")
        if self.strategy == "fps_based" and self.fps is None:
            raise InputError("the video processor has sample_strategy 'fps_based' but no fps; add it")


def with_wishes(spec: ClipSpec, *, fps: float | None, num_frames: int | None) -> ClipSpec:
    """Taking `num_frames` of each clip, or `fps` for each second; InputError for both wishes at once."""
    if fps is not None and num_frames is not None:
        raise InputError(f"a clip is asked for fps {fps} and for {num_frames} frames; give one of the two")
    if num_frames is not None:
        return dataclasses.replace(spec, strategy="uniform", num_frames=whole("num_frames of a clip", num_frames, 1))
    return spec if fps is None else dataclasses.replace(spec, strategy="fps_based", fps=finite("fps of a clip", fps))


@dataclass(frozen=True)
class ClipPlan:
    """Which frames of a clip are used, in which size in pixels."""

    frames: Indices
    height: int
    width: int

    def grid(self, image: ImageSpec) -> Grid:
        """In patches: (frames, height, width)."""
        patch = image.patch_size
        return len(self.frames) // image.temporal_patch_size, self.height // patch, self.width // patch


def plan_clip(total: int, height: int, width: int, spec: ClipSpec, rate: float | None = None) -> ClipPlan:
    """Choose from `total` frames of height x width pixels; `rate` is their number for each second.

    Raises InputError for clips that are too short, too small or too narrow.
    """
    image, sampled = spec.image, _sample(total, spec, rate)
    count, step, factor = len(sampled), image.temporal_patch_size, image.factor
    if count < step:
        raise InputError(f"the clip has {count} frames to take; at least {step} are needed, or send them as images")
    if min(height, width) < factor:
        raise InputError(f"the frames are {width} x {height} pixels; expected at least {factor} x {factor}")
    check_aspect(height, width)
    rows, columns = frame_size(height, width, _frame_limits(spec))
    budget = min(max(spec.max_frames // step, 1), count // step)  # temporal patches, all of them whole
    groups = -(-budget // step) * step
    groups, rows, columns = _within_tokens(groups, rows // factor, columns // factor, spec)
    frames = max(step, min(groups * step, max(spec.max_frames // step, 1) * step))
    return ClipPlan(sampled[_spread(count, frames)], rows * factor, columns * factor)


def _sample(total: int, spec: ClipSpec, rate: float | None) -> Indices:
    if spec.strategy == "fps_based":
        if not rate:
            raise InputError("frames are wanted by the second, but the clip has no frame rate; give their number")
        wanted = min(int(total / rate * (spec.fps or 0)), total)
    else:
        wanted = min(spec.num_frames or total, total)
    return np.arange(wanted, dtype=np.int64) * total // max(wanted, 1)


def _frame_limits(spec: ClipSpec) -> ImageSpec:
    """The pixel range of a frame; a limit of tokens lowers its upper end."""
    image = spec.image
    if spec.max_tokens is None:
        return image
    most = min(image.max_pixels, spec.max_tokens * image.factor**2 * image.temporal_patch_size)
    return dataclasses.replace(image, max_pixels=most, min_pixels=min(image.min_pixels, most), allowed_pixels=None)


def frame_size(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """The size of a frame. As `smart_resize`, but what became too small by shrinking is enlarged again."""
    factor = spec.factor
    size = rounded(height, width, factor)
    if prod(size) > spec.max_pixels:
        size = shrunk(height, width, factor, spec.max_pixels)
    if prod(size) < spec.min_pixels:
        size = grown(height, width, factor, spec.min_pixels)
    return size


def _within_tokens(groups: int, rows: int, columns: int, spec: ClipSpec) -> tuple[int, int, int]:
    """Temporal patches and image tokens of a frame; the pixels of a frame again where no limit shrinks them."""
    limit, step = spec.max_tokens, spec.image.temporal_patch_size
    while limit is not None and groups * rows * columns > limit:
        if groups > step:
            groups -= step
        elif rows >= columns and rows > 1:
            rows -= 1
        elif columns > 1:
            columns -= 1
        else:
            break
    return groups, rows, columns


def _spread(count: int, frames: int) -> Indices:
    """Indices of `frames` out of `count`, evenly: torch.linspace in float32, rounded half to even."""
    if frames == count:
        return np.arange(count, dtype=np.int64)
    last = np.float32(count - 1)
    step = last / np.float32(max(frames - 1, 1))
    ahead = np.arange(frames, dtype=np.float32)
    places = np.where(ahead < frames // 2, step * ahead, last - step * (np.float32(frames - 1) - ahead))
    return np.round(places).astype(np.int64)


def cut_clip(frames: UInt8, spec: ImageSpec, order: PatchOrder) -> tuple[Patches, Grid]:
    """Normalize and cut frames [temporal patch size * t, 3, h, w], whose sides are multiples of `spec.factor`.

    Returns patches [t*grid_h*grid_w, 3*temporal*patch*patch] and the grid (t, grid_h, grid_w).
    """
    patch, step = spec.patch_size, spec.temporal_patch_size
    grid = len(frames) // step, frames.shape[2] // patch, frames.shape[3] // patch
    out = np.empty((prod(grid), 3, step, patch * patch), np.float32)
    for channel in range(3):
        out[:, channel] = spec.table[channel][_in_order(frames[:, channel], grid, spec, order)]
    return out.reshape(len(out), -1), grid


def _in_order(frames: UInt8, grid: Grid, spec: ImageSpec, order: PatchOrder) -> UInt8:
    """One channel [frames, h, w] as patches [patches, temporal, patch*patch]."""
    (times, rows, columns), patch, step = grid, spec.patch_size, spec.temporal_patch_size
    merge = spec.merge_size if order == "windows" else 1
    cells = frames.reshape(times, step, rows // merge, merge, patch, columns // merge, merge, patch)
    return cells.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, step, patch * patch)


def clip_section(spec: ClipSpec) -> dict[str, Any]:
    """A spec as the section of a manifest."""
    image = spec.image
    kept = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name != "image"}
    constants = ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels", "rescale_factor")
    kept |= {name: getattr(image, name) for name in constants}
    return {**kept, "mean": list(image.mean), "std": list(image.std)}


def clip_spec(section: Clips) -> ClipSpec:
    """The spec in the section of a manifest."""
    image = of_section(section, min_pixels=section.min_pixels, max_pixels=section.max_pixels)
    return ClipSpec(image, section.strategy, section.num_frames, section.fps, section.max_frames, section.max_tokens)
