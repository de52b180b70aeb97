"""Limits of pixels that a plan may propose, and how many image tokens the largest image has under each."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.bundle.input_sections import PatchImages
from ..families.family import Sections

# Sides of squares: fine where a document begins to be readable, coarse above.
SIDES = (*range(224, 512, 32), *range(512, 1024, 64), 1024, 1280, 1536, 2048, 2560, 3072, 4096)


@dataclass(frozen=True)
class Rung:
    """A limit of the area of images, and the tokens of an image that reaches it."""

    max_pixels: int
    image_tokens: int


def image_rungs(sections: Sections) -> tuple[Rung, ...]:
    """Of a model with these sections, the smallest first; one alone where there is no choice, or no image."""
    inputs = inputs_of(sections)
    if not inputs.takes_images:
        return (Rung(0, 0),)
    limits, image = sections["limits"], inputs.image
    largest = Rung(int(limits["max_pixels"]), int(limits["max_image_tokens"]))
    if not isinstance(image, PatchImages):
        return (largest,)
    area = (image.patch_size * image.merge_size) ** 2  # of one image token
    sizes = (side * side for side in SIDES if area <= side * side < largest.max_pixels)
    return (*(Rung(size, size // area) for size in sizes), largest)
