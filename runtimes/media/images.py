"""Images into patches, to the bit as the Hugging Face processor of the Qwen models (Qwen2VLImageProcessor)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...targets.errors import InputError
from ..bundle.input_sections import PatchImages
from ..process.cores import spread
from ..values import whole
from .image_files import check_aspect, planes_of
from .resize import THREAD_PIXELS, UInt8, resize_bicubic
from .sizing import Size, check_area, grown, rounded, shrunk, whole_tokens

Patches: TypeAlias = npt.NDArray[np.float32]
Grid: TypeAlias = tuple[int, int, int]

LARGEST = 1 << 53  # of whole numbers that JSON has exactly
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Of Qwen2VLImageProcessor.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    "size": {"shortest_edge": 3136, "longest_edge": 1003520}, "rescale_factor": 1 / 255,
}  # fmt: skip
LIMITS = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))  # an older key, and where `size` has it
EDGES = "an object with shortest_edge and longest_edge, areas in pixels"


@dataclass(frozen=True)
class ImageSpec:
    """How images become patches: sizes in pixels, `min_pixels` and `max_pixels` as areas in pixels."""

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    allowed_pixels: tuple[int, int] | None = None  # the range that `with_pixels` may choose from
    exact_size: tuple[int, int] | None = None  # height and width in place of what the range gives
    takes_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            whole = type(value) is int and 0 < value < LARGEST
            _require(whole, f"image {name} is {str(value)[:100]}; expected a positive integer")
        _require(
            self.min_pixels <= self.max_pixels,
            f"image min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}; exchange or widen them",
        )
        _require(len(self.mean) == 3 and len(self.std) == 3, "image mean and std need three values each, for RGB")
        _require(
            all(map(is_number, (*self.mean, *self.std, self.rescale_factor)))
            and all(self.std)
            and self.rescale_factor > 0,
            "image mean, std and rescale_factor must be finite numbers, std not zero",
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageSpec:
        """Read a preprocessor_config.json, what it leaves out as Qwen2VLImageProcessor has it.

        Raises InputError for steps that this runtime does not do, and for values of the wrong kind.
        """
        for step in ("do_resize", "do_rescale", "do_normalize"):
            _require(config.get(step, True) is True, f"preprocessor_config has {step} off; expected all steps on")
        convert, resample = config.get("do_convert_rgb", True), config.get("resample", 3)
        _require(convert in (True, None), f"preprocessor_config has do_convert_rgb {convert!r}; expected true")
        _require(resample == 3, f"preprocessor_config resample is {resample!r}; expected 3 (bicubic)")
        values = {**DEFAULTS, **config}
        size = values["size"] if values["size"] is not None else DEFAULTS["size"]
        _require(isinstance(size, Mapping), f"preprocessor_config size is {size!r}; expected {EDGES}")
        pixels = {name: size.get(edge) if config.get(name) is None else config[name] for name, edge in LIMITS}
        _require(None not in pixels.values(), f"preprocessor_config size is {dict(size)}; expected {EDGES}")
        return cls(
            **{name: values[name] for name in ("patch_size", "temporal_patch_size", "merge_size")},
            **pixels,
            mean=three("image_mean", values["image_mean"]),
            std=three("image_std", values["image_std"]),
            rescale_factor=values["rescale_factor"],
        )

    def with_pixels(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> ImageSpec:
        """The same spec with another pixel range; raises InputError outside the range the bundle was built for.

        One end alone moves the other where it lies beyond.
        """
        low, high = self.allowed_pixels or (self.min_pixels, self.max_pixels)
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        chosen = {name: whole(name, value, 1) for name, value in given.items() if value is not None}
        least = chosen.get("min_pixels", min(self.min_pixels, chosen.get("max_pixels", high)))
        most = chosen.get("max_pixels", max(self.max_pixels, least))
        for name, value in (("min_pixels", least), ("max_pixels", most)):
            _require(
                low <= value <= high,
                f"{name} {value} is outside the {low} to {high} pixels that this bundle was "
                "built for; choose a value in that range or build another bundle",
            )
        return dataclasses.replace(self, min_pixels=least, max_pixels=most, allowed_pixels=(low, high))

    def of_size(self, size: Size) -> ImageSpec:
        """The same spec, by which images get a size (height, width) in whole tokens; InputError outside the range."""
        height, width = whole_tokens(size, self.factor)
        low, high = self.allowed_pixels or (self.min_pixels, self.max_pixels)
        check_area(height * width, low, high, f"an image of {height} x {width} pixels (resized_height x resized_width)")
        return dataclasses.replace(self, exact_size=(height, width))

    @property
    def factor(self) -> int:
        """Pixels along each side of one image token."""
        return self.patch_size * self.merge_size

    @property
    def normalization(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What to take from bytes, and to divide them by, of each colour: HF fuses rescaling into it, in float32."""
        scale = np.float32(1.0 / self.rescale_factor)
        return np.asarray(self.mean, np.float32) * scale, np.asarray(self.std, np.float32) * scale

    @cached_property
    def table(self) -> npt.NDArray[np.float32]:
        """The normalized value of each byte [3, 256]."""
        mean, std = (values[:, None] for values in self.normalization)
        return np.asarray((np.arange(256, dtype=np.float32) - mean) / std, np.float32)


def of_section(section: PatchImages, **changes: Any) -> ImageSpec:
    """The spec of a section of a manifest, which has no pixel range of its own."""
    return ImageSpec(
        section.patch_size,
        section.temporal_patch_size,
        section.merge_size,
        mean=three("mean", section.mean),
        std=three("std", section.std),
        rescale_factor=section.rescale_factor,
        **changes,
    )


def three(key: str, value: Any) -> tuple[float, float, float]:
    """A value for each colour; one number stands for all. InputError for anything else."""
    values = (value,) * 3 if is_number(value) else value
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(is_number, values)):
        raise InputError(f"preprocessor_config has {key} {str(value)[:100]}; expected three finite numbers, for RGB")
    return values[0], values[1], values[2]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number within float32's range."""
    return type(value) in (int, float) and abs(value) < 1e38  # false for NaN


def smart_resize(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """The size (height, width) HF resizes to: multiples of `spec.factor`, area in the spec's range where possible."""
    check_aspect(height, width)
    if spec.exact_size is not None:
        return spec.exact_size
    factor = spec.factor
    size = rounded(height, width, factor)
    if prod(size) > spec.max_pixels:
        return shrunk(height, width, factor, spec.max_pixels)
    if prod(size) < spec.min_pixels:
        return grown(height, width, factor, spec.min_pixels)
    return size


def preprocess(image: Image.Image, spec: ImageSpec) -> tuple[Patches, Grid]:
    """Patches [grid_t*grid_h*grid_w, 3*temporal*patch*patch] and the grid (t, h, w) of an RGB image, as HF makes them.

    The order of patches is that of the 2-by-2 (merge_size) blocks; raises InputError for sides that HF refuses.
    """
    height, width = smart_resize(image.height, image.width, spec)
    return patchify([resize_bicubic(planes_of(image), height, width)], spec)


def preprocess_images(images: Iterable[Image.Image], spec: ImageSpec) -> tuple[Patches, npt.NDArray[np.int64]]:
    """Patches of several images one after the other [patches, values] and their grids [images, 3]."""
    parts = [preprocess(image, spec) for image in images]
    values = 3 * spec.temporal_patch_size * spec.patch_size**2
    grids = np.array([grid for _, grid in parts], np.int64).reshape(-1, 3)
    return np.concatenate([np.empty((0, values), np.float32), *(patches for patches, _ in parts)]), grids


def patchify(frames: Sequence[UInt8], spec: ImageSpec) -> tuple[Patches, Grid]:
    """Normalize and cut frames [3, h, w], whose sides are multiples of `spec.factor`, into one layer of patches.

    These are the frames of a temporal patch, or a still image, which fills every time step. One row of blocks after the
    other, so that all but the result stays in the cache, in as many threads as the caller may use.
    """
    patch, (_, height, width) = spec.patch_size, frames[0].shape
    grid_h, grid_w = height // patch, width // patch
    out = np.empty((grid_h * grid_w, 3, spec.temporal_patch_size, patch * patch), np.float32)
    of_block_row = out.reshape(grid_h // spec.merge_size, -1, *out.shape[1:])
    mean, std = spec.normalization

    def cut(part: slice) -> None:
        for row, patches in enumerate(of_block_row[part], part.start):
            for step, planes in enumerate(frames):
                steps = slice(step, None if len(frames) == 1 else step + 1)
                for channel, plane in enumerate(planes):
                    band = plane[row * spec.factor : (row + 1) * spec.factor]
                    values = in_patch_order(band, spec).astype(np.float32)
                    values -= mean[channel]
                    values /= std[channel]
                    patches[:, channel, steps] = values[:, None]

    spread(cut, len(of_block_row), THREAD_PIXELS // (3 * spec.factor * width))
    return out.reshape(grid_h * grid_w, -1), (1, grid_h, grid_w)


def frames_of(patches: Patches, grid: Grid, spec: ImageSpec) -> UInt8:
    """What patches were cut from, uint8 [temporal patches, frames of each, height, width, 3]."""
    steps, height, width = grid
    patch, merge, channels = spec.patch_size, spec.merge_size, 3
    shape = (steps, height // merge, width // merge, merge, merge, channels, spec.temporal_patch_size, patch, patch)
    # time, rows of blocks and columns of blocks, row and column within, channel, frame, row and column of pixels
    cells = patches.reshape(shape).transpose(5, 0, 6, 1, 3, 7, 2, 4, 8)
    planes = cells.reshape(channels, steps, spec.temporal_patch_size, height * patch, width * patch)
    return np.ascontiguousarray(np.moveaxis(bytes_of(planes, spec.table), 0, -1))


def bytes_of(planes: Patches, table: npt.NDArray[np.float32]) -> UInt8:
    """Normalized values [3, ...] as the bytes that they were made of, by the value of each byte [3, 256]."""
    low, high = (table[:, end].reshape(3, *[1] * (planes.ndim - 1)) for end in (0, 255))
    return np.asarray(np.rint((planes - low) / (high - low) * 255), np.uint8)


def in_patch_order(plane: UInt8, spec: ImageSpec) -> UInt8:
    """One channel [h, w] cut into patches [patches, patch*patch], in the order of the merged blocks."""
    patch, merge = spec.patch_size, spec.merge_size
    grid_h, grid_w = plane.shape[0] // patch, plane.shape[1] // patch
    blocks = plane.reshape(grid_h // merge, merge, patch, grid_w // merge, merge, patch)
    return blocks.transpose(0, 3, 1, 4, 2, 5).reshape(grid_h * grid_w, patch * patch)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
