"""Headers tell the size of the picture that decoding gives, or nothing; files that are cut off are refused at once."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.runtimes.media.image_files import ImageLimits, header_size, open_image
from lensmith.runtimes.media.picture_headers import SIDEWAYS, WHOLE
from lensmith.targets.errors import InputError
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from tests.runtimes.media.test_images import MODES, noise
from tests.runtimes.media.test_picture_formats import FORMATS, written

KNOWN = ("JPEG", "PNG", "WEBP")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'


def saved(form: str, size: tuple[int, int] = (40, 24), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    MODES[mode](noise(*size, 4)).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def told(data: bytes) -> tuple[int, int] | None:
    return header_size("it", data, ImageLimits())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_what_a_header_tells_is_what_decoding_gives(form: str) -> None:
    for mode in MODES:
        if (data := written(form, mode)) is None:
            continue
        try:
            size = open_image(data).size
        except InputError:
            continue  # Pillow 11.0 cannot read a TIFF that it wrote
        assert told(data) == (size if form in WHOLE else None)


@pytest.mark.parametrize("form", KNOWN)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_by_exif(form: str, orientation: int) -> None:
    data = saved(form, exif=exif(orientation))
    assert told(data) == open_image(data).size == ((24, 40) if orientation in SIDEWAYS else (40, 24))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_upright_by_xmp(form: str) -> None:
    data = saved(form, xmp=XMP)
    assert told(data) == open_image(data).size


def png_parts(data: bytes) -> list[bytes]:
    """The chunks behind the mark, whole."""
    place, parts = 8, list[bytes]()
    while place < len(data):
        length = struct.unpack_from(">I", data, place)[0]
        parts.append(data[place : place + 12 + length])
        place += 12 + length
    return parts


def test_png_turned_behind_its_pixels() -> None:
    """Only decoding finds these; in front of the pixels the header does."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    for data in (saved("PNG", exif=exif(6)), saved("PNG", pnginfo=info)):
        assert told(data) == open_image(data).size == (24, 40)
        head, *parts, end = png_parts(data)
        words = [part for part in parts if part[4:8] != b"IDAT"]
        pixels = [part for part in parts if part[4:8] == b"IDAT"]
        turned = b"".join((data[:8], head, *pixels, *words, end))
        assert (told(turned), open_image(turned).size) == (None, (24, 40))


@given(form=st.sampled_from(KNOWN), progressive=st.booleans(), share=st.floats(0, 1), tail=st.binary(max_size=9))
def test_a_file_cut_anywhere_tells_nothing(form: str, progressive: bool, share: float, tail: bytes) -> None:
    data = saved(form, progressive=progressive) if form == "JPEG" else saved(form)
    cut = data[: int(share * (len(data) - 1))]
    with suppress(InputError):  # where the header is missing
        assert told(cut) is None
    assert told(data + tail) == (40, 24)  # what cameras append


def test_a_thumbnail_does_not_end_a_picture() -> None:
    small = saved("JPEG", (8, 8))
    data = saved("JPEG", exif=b"Exif\0\0" + exif(1).tobytes()[6:] + small)
    assert told(data) == (40, 24)
    assert told(data[:-2]) is None


def test_segments_of_jpeg_with_fill_bytes() -> None:
    data = saved("JPEG")
    assert told(data[:2] + b"\xff\xff" + data[2:]) in (None, (40, 24))
    assert told(data[:2] + b"\xff" + data[2:]) == open_image(data[:2] + b"\xff" + data[2:]).size


@pytest.mark.parametrize(("data", "words"), [
    (b"", "is empty"), (b"no picture", "known format"), (saved("JPEG")[:30], "not a readable image|known format"),
    (b"P6 20000 20000 255\n", "more than the limit"), (saved("PNG", (1, 201)), "one side may be at most"),
])  # fmt: skip
def test_refusals_are_those_of_decoding(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as by_header:
        told(data)
    with pytest.raises(InputError) as by_decoding:
        open_image(data)
    assert str(by_header.value).removeprefix("it") == str(by_decoding.value).removeprefix("the image data")


def test_png_without_pixels_is_refused_at_once() -> None:
    head = b"\x89PNG\r\n\x1a\n" + png_parts(saved("PNG"))[0]
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    assert told(head + end) is None
    with pytest.raises(InputError):
        open_image(head + end)
