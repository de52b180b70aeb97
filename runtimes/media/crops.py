"""Images cropped to one size, to the bit as the Hugging Face processor of CLIP (CLIPImageProcessor)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...targets.errors import InputError
from ..bundle.input_sections import CropImages
from .image_files import check_aspect, planes_of
from .images import CLIP_MEAN, CLIP_STD, LARGEST, Grid, Patches, bytes_of, is_number, three
from .resize import UInt8, resize_bicubic

Size = tuple[int, int]  # height and width in pixels
PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor", None)
# Keys that change nothing but the speed, the type of the result or what is written beside it.
NEUTRAL = {"image_processor_type", "processor_class", "feature_extractor_type", "data_format", "input_data_format",
           "return_tensors", "device", "disable_grouping", "default_to_square", "image_seq_length", "resample", "size",
           "crop_size", "do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "image_mean",
           "image_std", "rescale_factor"}  # fmt: skip


@dataclass(frozen=True)
class CropSpec:
    """How an image becomes the pixels of one size: resize, then crop around the centre, then scale and normalize."""

    shortest_edge: int | None = 224  # pixels of the shorter side behind resizing; None: resize to `resized`
    resized: Size | None = None  # height and width behind resizing; both None: no resizing
    cropped: Size | None = (224, 224)  # None: no crop
    mean: tuple[float, float, float] | None = CLIP_MEAN  # None: no normalization
    std: tuple[float, float, float] = CLIP_STD
    rescale_factor: float | None = 1 / 255  # None: bytes stay from 0 to 255
    image_tokens: int = 1  # of each image in the prompt
    takes_images: ClassVar[bool] = True
    merge_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        sides = (self.shortest_edge, self.image_tokens, *(self.resized or ()), *(self.cropped or ()))
        whole = all(side is None or (type(side) is int and 0 < side < LARGEST) for side in sides)
        _require(whole, f"image sizes {self} must be positive whole numbers")
        _require(self.mean is None or len(self.mean) == 3, "image mean needs three values, for RGB")
        _require(len(self.std) == 3 and all(self.std), "image std needs three values, for RGB, none of them zero")
        numbers = (*(self.mean or ()), *self.std, 1.0 if self.rescale_factor is None else self.rescale_factor)
        finite = all(map(is_number, numbers)) and self.rescale_factor != 0
        _require(finite, "image mean, std and rescale_factor must be finite numbers, the factor not zero")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], image_tokens: int) -> CropSpec:
        """Read a preprocessor_config.json; InputError names a step or a value that this runtime does not do."""
        kind = config.get("image_processor_type", config.get("feature_extractor_type"))
        _only("image_processor_type", kind, PROCESSORS)
        _only("resample", config.get("resample", 3), (3,))
        _only("do_convert_rgb", config.get("do_convert_rgb", True), (True, None))
        unknown = [key for key in config if key not in NEUTRAL and config[key] not in (None, False)]
        if unknown:
            raise InputError(f"preprocessor_config has {unknown[0]} {config[unknown[0]]!r}, which is not supported for "
                             "images of one size; remove it or use another checkpoint")  # fmt: skip
        edge, size = _read_size(config.get("size", 224)) if config.get("do_resize", True) else (None, None)
        crop = _read_crop(config.get("crop_size", 224)) if config.get("do_center_crop", True) else None
        mean, std = (
            three(key, config.get(key, usual)) for key, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
        )
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else None
        return cls(edge, size, crop, mean if config.get("do_normalize", True) else None, std, factor, image_tokens)

    @classmethod
    def from_manifest(cls, section: CropImages) -> CropSpec:
        """Read the image section of a manifest, as `to_manifest` writes it."""
        values: dict[str, Any] = {field.name: getattr(section, field.name) for field in fields(cls)}
        for name in ("resized", "cropped", "mean", "std"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)

    def to_manifest(self) -> dict[str, Any]:
        """The image section of a manifest."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": "crop", **plain}

    def with_pixels(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> CropSpec:
        """The same spec; InputError for a wish, since all images have one size."""
        for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if value is not None:
                raise InputError(f"{name} {value} has no effect on this model, which brings every image to one size; "
                                 "leave it out")  # fmt: skip
        return self

    def of_size(self, _: Size) -> CropSpec:
        """Raises InputError, as `with_pixels` does."""
        raise InputError("resized_height and resized_width have no effect on this model, which brings every image to "
                         "one size; leave them out")  # fmt: skip

    @property
    def size(self) -> Size | None:
        """Height and width of every result; None where they follow the image."""
        return self.cropped or self.resized

    @property
    def factor(self) -> int:
        """Pixels along each side of one image token, in a square image."""
        height, width = self.size or (1, 1)
        return max(1, round(math.sqrt(height * width / self.image_tokens)))

    @cached_property
    def table(self) -> npt.NDArray[np.float32]:
        """The value of each byte [3, 256]."""
        return byte_table(self.mean, self.std, self.rescale_factor)


def byte_table(
    mean: tuple[float, float, float] | None, std: tuple[float, float, float], factor: float | None
) -> npt.NDArray[np.float32]:
    """The value of each byte [3, 256], in the float32 operations of HF, which fuses scaling and normalization.

    `mean` None: no normalization; `factor` None: no scaling.
    """
    bytes_ = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    if mean is None:
        return bytes_ * np.float32(1.0 if factor is None else factor)
    scale = np.float32(1.0 if factor is None else 1.0 / factor)
    centre, spread = ((np.asarray(values, np.float32) * scale)[:, None] for values in (mean, std))
    return np.asarray((bytes_ - centre) / spread, np.float32)


def crop_grid(height: int, width: int, spec: CropSpec) -> Grid:
    """(1, 1, image tokens): the tokens of such an image lie in a row for the decoder. InputError for thin images."""
    check_aspect(height, width)
    return 1, 1, spec.image_tokens


def crop(image: Image.Image, spec: CropSpec) -> tuple[Patches, Grid]:
    """Pixels [1, 3, height, width] of an RGB image and its grid; raises InputError for thin images."""
    grid = crop_grid(image.height, image.width, spec)
    planes = planes_of(image)
    if (size := resized_size(image.height, image.width, spec)) is not None:
        planes = resize_bicubic(planes, *size)
    if spec.cropped is not None:
        planes = center_crop(planes, spec.cropped)
    return np.stack([row[plane] for row, plane in zip(spec.table, planes, strict=True)])[None], grid


def frames_of_crop(pixels: Patches, _: Grid, spec: CropSpec) -> UInt8:
    """What pixels were made of, uint8 [1, 1, height, width, 3]."""
    return np.moveaxis(bytes_of(np.moveaxis(pixels, 1, 0), spec.table), 0, -1)[None]


def resized_size(height: int, width: int, spec: CropSpec) -> Size | None:
    """Height and width behind resizing: the longer side is rounded down."""
    if spec.shortest_edge is None:
        return spec.resized
    long = int(spec.shortest_edge * max(height, width) / min(height, width))
    return (long, spec.shortest_edge) if width <= height else (spec.shortest_edge, long)


def center_crop(planes: UInt8, size: Size) -> UInt8:
    """The centre [3, height, width] of `planes` [3, h, w]; what is missing becomes black, the odd row at the end."""
    missing = [max(0, wanted - found) for wanted, found in zip(size, planes.shape[1:], strict=True)]
    padded = np.pad(planes, [(0, 0), *((lack // 2, lack - lack // 2) for lack in missing)])
    top, left = ((found - wanted) // 2 for found, wanted in zip(padded.shape[1:], size, strict=True))
    return padded[:, top : top + size[0], left : left + size[1]]


def _read_size(size: Any) -> tuple[int | None, Size | None]:
    """The shortest edge, or height and width; a bare number is the shortest edge, as CLIP means it."""
    if isinstance(size, int):
        return size, None
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        if set(given) == {"shortest_edge"}:
            return given["shortest_edge"], None
        if set(given) == {"height", "width"}:
            return None, (given["height"], given["width"])
    raise InputError(f"preprocessor_config size is {size!r}; expected shortest_edge, or height and width")


def _read_crop(size: Any) -> Size:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    raise InputError(f"preprocessor_config crop_size is {size!r}; expected height and width")


def _only(key: str, found: object, supported: tuple[object, ...]) -> None:
    expected = ", ".join(repr(value) for value in supported if value is not None)
    _require(
        any(found == value for value in supported), f"preprocessor_config has {key} {found!r}; expected {expected}"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
