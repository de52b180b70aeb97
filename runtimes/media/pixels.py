"""How images become what a vision encoder takes: one row for each kind of a manifest's image section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from PIL import Image

from ..bundle.input_sections import CropImages, NoImagesEntry, PatchImages, TileImages
from ..bundle.manifest import InputSections
from ..prompt.prompt_builder import tile_count
from . import crops, images, tiles
from .crops import CropSpec
from .images import Grid, ImageSpec, Patches
from .no_images import NoImages, refuse
from .resize import UInt8
from .tiles import TileSpec

PixelSpec: TypeAlias = ImageSpec | CropSpec | TileSpec | NoImages


@dataclass(frozen=True)
class Kind:
    """What one kind of preprocessing knows: its constants, an image's grid before anything is done, and the work."""

    spec: Callable[[InputSections], PixelSpec]
    grid: Callable[[int, int, Any], Grid]  # of height, width and the constants
    preprocess: Callable[[Image.Image, Any], tuple[Patches, Grid]]
    frames: Callable[[Patches, Grid, Any], UInt8]  # the way back from it
    pieces: Callable[[Grid], int] = lambda _: 1  # that the image tokens of a grid fall into, alike
    limits: Callable[[Any], dict[str, int]] = lambda _: {}  # of sizes, as transformers' processors name them


def image_spec(inputs: InputSections) -> PixelSpec:
    """How a manifest wants images prepared."""
    return KINDS[type(inputs.image)].spec(inputs)


def image_grid(height: int, width: int, spec: PixelSpec) -> Grid:
    """The grid of an image of some size in pixels; InputError for sides that are refused.

    It is (frames, height, width) in patches, or (rows, columns, tokens of each) of tiles.
    """
    return BY_SPEC[type(spec)].grid(height, width, spec)


def preprocess(image: Image.Image, spec: PixelSpec) -> tuple[Patches, Grid]:
    """The input of the vision encoder for an RGB image, and the image's grid."""
    return BY_SPEC[type(spec)].preprocess(image, spec)


def grid_tokens(grid: Grid, spec: PixelSpec) -> int:
    """How many tokens an image of this grid takes in the prompt, those around them left out."""
    pieces = BY_SPEC[type(spec)].pieces(grid)
    return prod(grid) // spec.merge_size**2 if pieces == 1 else pieces * grid[2]


def processor_size(spec: PixelSpec) -> dict[str, int]:
    """The limits of sizes as `size` of transformers' image processor has them; empty where all images become one."""
    return BY_SPEC[type(spec)].limits(spec)


def to_frames(patches: Patches, grid: Grid, spec: PixelSpec) -> UInt8:
    """The images that patches were cut from, uint8 [temporal patches, frames of each, height, width, 3]."""
    return BY_SPEC[type(spec)].frames(patches, grid, spec)


def _patch_spec(inputs: InputSections) -> ImageSpec:
    """How images are cut, with the pixel range that a manifest allows."""
    image, low, high = inputs.image, inputs.limits.min_pixels, inputs.limits.max_pixels
    assert isinstance(image, PatchImages)
    # Below the checkpoint's own minimum is allowed: a device may want fewer tokens than the default.
    floor = min((image.patch_size * image.merge_size) ** 2, low)
    return images.of_section(image, min_pixels=low, max_pixels=high, allowed_pixels=(floor, high))


def _crop_spec(inputs: InputSections) -> CropSpec:
    assert isinstance(inputs.image, CropImages)
    return CropSpec.from_manifest(inputs.image)


def _tile_spec(inputs: InputSections) -> TileSpec:
    assert isinstance(inputs.image, TileImages)
    return TileSpec.from_manifest(inputs.image)


def _patch_grid(height: int, width: int, spec: ImageSpec) -> Grid:
    height, width = images.smart_resize(height, width, spec)
    return 1, height // spec.patch_size, width // spec.patch_size


PATCHES = Kind(_patch_spec, _patch_grid, images.preprocess, images.frames_of,
               limits=lambda spec: {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels})  # fmt: skip
CROPS = Kind(_crop_spec, crops.crop_grid, crops.crop, crops.frames_of_crop)
TILES = Kind(_tile_spec, tiles.tile_grid, tiles.cut_tiles, tiles.frames_of_tiles, lambda grid: tile_count(*grid[:2]),
             limits=lambda spec: {"longest_edge": spec.longest_edge})  # fmt: skip
NONE = Kind(lambda _: NoImages(), refuse, refuse, refuse)
KINDS: Mapping[type, Kind] = {PatchImages: PATCHES, CropImages: CROPS, TileImages: TILES, NoImagesEntry: NONE}
BY_SPEC: Mapping[type, Kind] = {ImageSpec: PATCHES, CropSpec: CROPS, TileSpec: TILES, NoImages: NONE}
