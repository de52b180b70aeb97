"""Files and image objects as pictures in RGB.

A file is read as `transformers.image_utils.load_image` does (upright by its EXIF orientation, then RGB); an image
object is taken as Hugging Face's processors take it (transparency onto white, EXIF ignored).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...targets.errors import InputError
from ..storage.reading import read_limited
from ..values import whole
from .picture_formats import decoded, identify
from .picture_headers import upright_size
from .resize import UInt8
from .sources import ImageSource, opened_source

MAX_ASPECT_RATIO = 200  # smart_resize refuses more


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost before it is decoded; what has more is refused with an InputError.

    `max_decoded_pixels` is its width times its height by its header, by default what Pillow takes, and so transformers:
    179 million. `max_file_bytes` is the size of the file. Raises InputError for limits below 1.
    """

    max_decoded_pixels: int = 2 * 89_478_485
    max_file_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            whole(f"image limit {field.name}", getattr(self, field.name), 1)


def open_image(source: ImageSource, limits: ImageLimits | None = None) -> Image.Image:
    """Open what `ImageSource` lists as RGB; InputError if unusable. Arrays are taken as image objects are."""
    limits = limits or ImageLimits()
    return decode_image(*read_image(source, limits), limits)


def read_image(source: ImageSource, limits: ImageLimits) -> tuple[str, bytes | Image.Image]:
    """A name for messages, and the bytes of a file or an image object; InputError if unusable."""
    opened = opened_source(source, "an image", limits.max_file_bytes)
    if isinstance(opened, Image.Image):
        return "the image", opened
    return read_bytes(opened, limits)


def read_bytes(source: Path | bytes, limits: ImageLimits) -> tuple[str, bytes]:
    """A name for messages, and the bytes."""
    if isinstance(source, bytes):
        return "the image data", source
    return str(source)[:200], read_limited(source, limits.max_file_bytes, "the path of an image file")


def decode_image(name: str, content: bytes | Image.Image, limits: ImageLimits) -> Image.Image:
    """What `read_image` gives as RGB; InputError if unusable."""
    if isinstance(content, Image.Image):
        check_header(content, name, limits)
        return decoded(name, lambda: onto_white(content.copy()))
    image = _identified(name, content, limits)
    whole = decoded(name, lambda: onto_white(_upright(image)))
    check_header(whole, name, limits)  # icons and others find out their size only now
    return whole


def header_size(name: str, content: bytes, limits: ImageLimits) -> tuple[int, int] | None:
    """Width and height of what `decode_image` gives, without decoding; None where only that tells them.

    Raises InputError for what is no picture or over a limit.
    """
    image = _identified(name, content, limits)
    return decoded(name, lambda: upright_size(image, content))


def _identified(name: str, content: bytes, limits: ImageLimits) -> Image.Image:
    _require(len(content) > 0, f"{name} is empty (0 bytes); expected an image file")
    image = decoded(name, lambda: identify(content))
    check_header(image, name, limits)
    return image


def check_header(image: Image.Image, name: str, limits: ImageLimits) -> None:
    pixels = image.width * image.height
    _require(
        pixels <= limits.max_decoded_pixels,
        f"{name} is {image.width} x {image.height} pixels, "
        f"more than the limit of {limits.max_decoded_pixels}; scale it down first, or raise the limit: "
        f"--max-image-megapixels {-(-pixels // 1_000_000)} (in Python: ImageLimits)",
    )
    check_aspect(image.height, image.width)


def check_aspect(height: int, width: int) -> None:
    """Raise InputError for an image with an empty side, or one side more than 200 times the other."""
    _require(height > 0 and width > 0, f"the image is {width} x {height} pixels; expected sides of at least 1 pixel")
    _require(
        max(height, width) / min(height, width) <= MAX_ASPECT_RATIO,
        f"the image is {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the other, crop it",
    )


def _upright(image: Image.Image) -> Image.Image:
    """A decoded picture in RGB, turned as its EXIF data say; the same object where there is nothing to do."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _rgb(image)


def onto_white(image: Image.Image) -> Image.Image:
    """HF's convert_to_rgb: transparency is composed onto white, any other mode is Pillow's conversion.

    An image in RGB without transparency is given back as it is.
    """
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return _rgb(image)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def planes_of(image: Image.Image) -> UInt8:
    """The pixels of an image in RGB as planes [3, h, w]."""
    image, planes = _rgb(image), np.empty((3, image.height, image.width), np.uint8)
    for plane, band in zip(planes, "RGB", strict=True):
        plane.reshape(-1)[:] = np.frombuffer(image.tobytes("raw", band), np.uint8)
    return planes


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
