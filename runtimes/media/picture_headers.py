"""How large a picture is once it is upright, by the header of its file alone, where that can be trusted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from PIL import ExifTags, Image

SCAN, FILL = 0xDA, 0xFF  # markers of JPEG
END_OF_JPEG = b"\xff\xd9"
WORDS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks of PNG in which an orientation may stand
SIDEWAYS = (5, 6, 7, 8)  # orientations of EXIF that exchange width and height


def upright_size(image: Image.Image, content: bytes) -> tuple[int, int] | None:
    """Width and height of a picture of which only the header was read, turned as its EXIF data say.

    None where decoding alone tells them: in formats whose header is not enough, and for files that look cut off, so
    that these are refused at once.
    """
    looks_whole = WHOLE.get(image.format or "")
    if looks_whole is None or not looks_whole(content):
        return None
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # that of PNG's own class decodes
    return (image.height, image.width) if orientation in SIDEWAYS else image.size


def _whole_jpeg(content: bytes) -> bool:
    """Whether there is an end behind the beginning of the first scan; that of a thumbnail lies in a segment before."""
    place = 2
    while place + 4 <= len(content) and content[place] == FILL:
        kind = content[place + 1]
        if kind == SCAN:
            return content.rfind(END_OF_JPEG, place) >= 0
        place += 1 if kind == FILL else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _whole_png(content: bytes) -> bool:
    """Whether the last chunk is there, and nothing behind the pixels may turn them."""
    place, pixels = 8, False
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IEND":
            return pixels
        if pixels and kind in WORDS:
            return False
        pixels = pixels or kind == b"IDAT"
        place += 12 + length
    return False


def _whole_webp(content: bytes) -> bool:
    return len(content) >= 8 + int.from_bytes(content[4:8], "little")


# Formats that have the size of the decoded picture in their header, and whether a file is whole by its structure.
WHOLE: Mapping[str, Callable[[bytes], bool]] = {
    "JPEG": _whole_jpeg, "MPO": _whole_jpeg, "PNG": _whole_png, "WEBP": _whole_webp,
}  # fmt: skip
