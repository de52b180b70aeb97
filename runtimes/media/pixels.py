"""How images become what a vision encoder takes: one row for each kind of a manifest's image section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from ...targets.errors import InputError, closest
from . import crops, images
from .crops import CropSpec
from .images import Grid, ImageSpec, Patches
from .no_images import NoImages, refuse

PixelSpec: TypeAlias = ImageSpec | CropSpec | NoImages


@dataclass(frozen=True)
class Kind:
    """What one kind of preprocessing knows: its constants, an image's grid before anything is done, and the work."""

    spec: type[PixelSpec]
    read: Callable[[Mapping[str, Any]], PixelSpec]
    grid: Callable[[int, int, Any], Grid]  # of height, width and the constants
    preprocess: Callable[[Image.Image, Any], tuple[Patches, Grid]]


def image_spec(manifest: Mapping[str, Any]) -> PixelSpec:
    """How a manifest wants images prepared; InputError for a kind that this runtime does not know."""
    kind = manifest["image"].get("kind", "patches")
    if kind not in KINDS:
        raise InputError(f"the manifest has images of kind {kind!r}; {closest(kind, KINDS)} Upgrade lensmith.")
    return KINDS[kind].read(manifest)


def image_grid(height: int, width: int, spec: PixelSpec) -> Grid:
    """The grid (frames, height, width) of an image of some size in pixels; InputError for sides that are refused."""
    return _kind(spec).grid(height, width, spec)


def preprocess(image: Image.Image, spec: PixelSpec) -> tuple[Patches, Grid]:
    """The input of the vision encoder for an RGB image, and the image's grid (frames, height, width)."""
    return _kind(spec).preprocess(image, spec)


def _kind(spec: PixelSpec) -> Kind:
    return next(kind for kind in KINDS.values() if isinstance(spec, kind.spec))


def _read_patches(manifest: Mapping[str, Any]) -> ImageSpec:
    """How a manifest wants images cut, with the pixel range that it allows."""
    image, limits = dict(manifest["image"]), manifest["limits"]
    image.pop("kind", None)
    low, high = limits["min_pixels"], limits["max_pixels"]
    constants = {**image, "mean": tuple(image["mean"]), "std": tuple(image["std"])}
    # Below the checkpoint's own minimum is allowed: a device may want fewer tokens than the default.
    floor = (image["patch_size"] * image["merge_size"]) ** 2
    return ImageSpec(**constants, min_pixels=low, max_pixels=high, allowed_pixels=(min(floor, low), high))


def _patch_grid(height: int, width: int, spec: ImageSpec) -> Grid:
    height, width = images.smart_resize(height, width, spec)
    return 1, height // spec.patch_size, width // spec.patch_size


KINDS: Mapping[str, Kind] = {
    "patches": Kind(ImageSpec, _read_patches, _patch_grid, images.preprocess),
    "crop": Kind(CropSpec, CropSpec.from_manifest, crops.crop_grid, crops.crop),
    "none": Kind(NoImages, lambda _: NoImages(), refuse, refuse),
}
