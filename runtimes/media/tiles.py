"""Images cut into tiles of one size, to the bit as the Hugging Face processors of Idefics3 and SmolVLM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...targets.errors import InputError
from ..bundle.input_sections import LONGEST, TileImages
from ..values import whole
from .crops import byte_table
from .image_files import planes_of
from .images import Grid, Patches, bytes_of, three
from .resize import Kernel, UInt8, resize

Size = tuple[int, int]  # height and width in pixels
PROCESSORS = ("Idefics3ImageProcessor", "Idefics3ImageProcessorFast", "Idefics3ImageProcessorPil",
              "SmolVLMImageProcessor", "SmolVLMImageProcessorFast", "SmolVLMImageProcessorPil", None)  # fmt: skip
RESAMPLES: Mapping[int, Kernel] = {1: "lanczos", 3: "bicubic"}  # by Pillow's numbers
HALF = (0.5, 0.5, 0.5)
STEPS = ("do_resize", "do_convert_rgb", "do_pad")  # that are always done
NEUTRAL = {*STEPS, "image_processor_type", "processor_class", "data_format", "input_data_format", "return_tensors",
           "device", "disable_grouping", "default_to_square", "image_seq_length", "return_row_col_info", "resample",
           "size", "max_image_size", "do_image_splitting", "do_rescale", "do_normalize", "image_mean", "image_std",
           "rescale_factor", "video_sampling"}  # fmt: skip


@dataclass(frozen=True)
class TileSpec:
    """How an image becomes tiles: its longer side is resized, then both to whole tiles; the whole image comes last.

    An image of one tile is that tile alone. Without `split` every image is.
    """

    longest_edge: int  # pixels of the longer side behind the first resizing
    tile: int  # pixels a side of a tile
    tile_tokens: int  # of each tile in the prompt
    split: bool = True
    resample: Kernel = "lanczos"
    mean: tuple[float, float, float] | None = HALF  # None: no normalization
    std: tuple[float, float, float] = HALF
    rescale_factor: float | None = 1 / 255  # None: bytes stay from 0 to 255
    takes_images: ClassVar[bool] = True
    merge_size: ClassVar[int] = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tile_tokens: int) -> TileSpec:
        """Read a preprocessor_config.json; InputError names a step or a value that this runtime does not do."""
        _only("image_processor_type", config.get("image_processor_type"), PROCESSORS)
        _only("resample", config.get("resample", 1), tuple(RESAMPLES))
        for step in STEPS:
            _only(step, config.get(step, True), (True, None))
        unknown = [key for key in config if key not in NEUTRAL and config[key] not in (None, False)]
        if unknown:
            raise InputError(f"preprocessor_config has {unknown[0]} {str(config[unknown[0]])[:100]}, which is not "
                             "supported for images in tiles; remove it or use another checkpoint")  # fmt: skip
        mean, std = (three(key, _given(config, key, HALF)) for key in ("image_mean", "image_std"))
        return cls(
            longest_edge=_edge(config, "size", 4 * 364),
            tile=_edge(config, "max_image_size", 364),
            tile_tokens=tile_tokens,
            split=bool(_only("do_image_splitting", _given(config, "do_image_splitting", True), (True, False))),
            resample=RESAMPLES[config.get("resample", 1)],
            mean=mean if _given(config, "do_normalize", True) else None,
            std=std,
            rescale_factor=_given(config, "rescale_factor", 1 / 255) if _given(config, "do_rescale", True) else None,
        )

    @classmethod
    def from_manifest(cls, section: TileImages) -> TileSpec:
        """Read the image section of a manifest, as `to_manifest` writes it."""
        values: dict[str, Any] = {field.name: getattr(section, field.name) for field in fields(cls)}
        for name in ("mean", "std"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)

    def to_manifest(self) -> dict[str, Any]:
        """The image section of a manifest."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": "tiles", **plain}

    def with_pixels(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> TileSpec:
        """The same spec with a longer side of as many whole tiles as an area of `max_pixels` has room for, squared.

        Raises InputError outside the range the bundle was built for, and for `min_pixels`.
        """
        if min_pixels is not None:
            raise InputError(f"min_pixels {min_pixels} has no effect on this model, which enlarges every image to the "
                             "same longer side; leave it out")  # fmt: skip
        if max_pixels is None:
            return self
        low, high = self.tile**2, self.longest_edge**2
        if not low <= whole("max_pixels", max_pixels, 1) <= high or not self.split:
            raise InputError(f"max_pixels {max_pixels} is outside the {low} to {high if self.split else low} pixels "
                             "that this bundle was built for; choose a value in that range or build another "
                             "bundle")  # fmt: skip
        side = math.isqrt(max_pixels)
        return self if max_pixels == high else replace(self, longest_edge=side // self.tile * self.tile)

    def of_size(self, _: Size) -> TileSpec:
        """Raises InputError: the sides of images follow from their longer one."""
        raise InputError("resized_height and resized_width have no effect on this model, which cuts every image into "
                         "tiles; leave them out, or give max_pixels")  # fmt: skip

    @property
    def factor(self) -> int:
        """Pixels along each side of one image token."""
        return max(1, round(self.tile / math.sqrt(self.tile_tokens)))

    @cached_property
    def table(self) -> npt.NDArray[np.float32]:
        """The value of each byte [3, 256]."""
        return byte_table(self.mean, self.std, self.rescale_factor)


def tile_grid(height: int, width: int, spec: TileSpec) -> Grid:
    """Rows and columns of tiles, and the tokens of each; more than one tile are followed by the whole image."""
    if not spec.split:
        return 1, 1, spec.tile_tokens
    high, wide = whole_tiles(longer_side(height, width, spec), spec.tile)
    return high // spec.tile, wide // spec.tile, spec.tile_tokens


def cut_tiles(image: Image.Image, spec: TileSpec) -> tuple[Patches, Grid]:
    """Pixels [tiles, 3, side, side] of an RGB image, row by row, and its grid."""
    grid = tile_grid(image.height, image.width, spec)
    rows, columns, _ = grid
    sized = resize(planes_of(image), *longer_side(image.height, image.width, spec), spec.resample)
    full = resize(sized, rows * spec.tile, columns * spec.tile, spec.resample)
    cells = full.reshape(3, rows, spec.tile, columns, spec.tile).transpose(1, 3, 0, 2, 4).reshape(-1, *sides(spec))
    if rows * columns > 1:
        cells = np.concatenate([cells, resize(full, spec.tile, spec.tile, spec.resample)[None]])
    out = np.empty(cells.shape, np.float32)
    for channel, row in enumerate(spec.table):
        out[:, channel] = row[cells[:, channel]]
    return out, grid


def sides(spec: TileSpec) -> tuple[int, int, int]:
    """The shape of a tile."""
    return 3, spec.tile, spec.tile


def frames_of_tiles(pixels: Patches, _: Grid, spec: TileSpec) -> UInt8:
    """What pixels were made of, uint8 [tiles, 1, height, width, 3]."""
    return np.moveaxis(bytes_of(np.moveaxis(pixels, 1, 0), spec.table), 0, -1)[:, None]


def longer_side(height: int, width: int, spec: TileSpec) -> Size:
    """Height and width behind the first resizing: the shorter side is even, unless the longer one is above the most.

    `_resize_output_size_rescale_to_max_len` and `_resize_output_size_scale_below_upper_bound` of the processors.
    """
    high, wide = _of_longest(height, width, spec.longest_edge)
    high, wide = (high, wide + wide % 2) if height > width else (high + high % 2, wide)
    if max(high, wide) > LONGEST:
        high, wide = _of_longest(high, wide, LONGEST)
    return max(high, 1), max(wide, 1)


def _of_longest(height: int, width: int, longest: int) -> Size:
    aspect = width / height
    return (int(longest / aspect), longest) if width >= height else (longest, int(longest * aspect))


def whole_tiles(size: Size, tile: int) -> Size:
    """Height and width in whole tiles: the longer side rounded up, the shorter one in proportion and rounded up."""
    height, width = size
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(max(1, int(width / aspect)) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(max(1, int(height * aspect)) / tile) * tile


def _given(config: Mapping[str, Any], key: str, usual: Any) -> Any:
    found = config.get(key)
    return usual if found is None else found


def _edge(config: Mapping[str, Any], key: str, usual: int) -> int:
    """The longest edge of a size."""
    found = _given(config, key, {"longest_edge": usual})
    edge = found.get("longest_edge") if isinstance(found, Mapping) else None
    others = [name for name, value in found.items() if value is not None] if isinstance(found, Mapping) else []
    if type(edge) is not int or not 1 <= edge <= LONGEST or others != ["longest_edge"]:
        raise InputError(
            f"preprocessor_config {key} is {str(found)[:100]}; expected longest_edge alone, up to {LONGEST}"
        )
    return edge


def _only(key: str, found: object, supported: tuple[object, ...]) -> object:
    if not any(found == value and isinstance(found, type(value)) for value in supported):
        expected = ", ".join(repr(value) for value in supported if value is not None)
        raise InputError(f"preprocessor_config has {key} {str(found)[:100]!r}; expected {expected}")
    return found
