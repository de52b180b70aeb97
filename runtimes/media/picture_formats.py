"""Formats of pictures: all that Pillow decodes by itself, found out by the content of a file."""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from ...targets.errors import InputError

Opened = TypeVar("Opened")

# Those that start another program (EPS: Ghostscript), ask the system (WMF), need packages that are not asked for (FPX,
# MIC), or have no decoder in Pillow.
LEFT_OUT = frozenset(("EPS", "WMF", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "MPEG"))
# Formats whose files begin with a mark of their own, so that no video is taken for one of them.
MARKED = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "ICNS", "PSD", "QOI")
EXPECTED = "a whole JPEG, PNG, WebP, BMP, GIF or TIFF file, or another that Pillow reads"
MARK_BYTES = 16
# Brands of files in ISO containers, and what reads them.
FURTHER = {
    b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"heim": "HEIC", b"heis": "HEIC",
    b"mif1": "HEIC", b"msf1": "HEIC", b"jxl ": "JPEG XL",
}  # fmt: skip
PACKAGES = {"HEIC": ("pillow_heif", "pillow-heif"), "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin")}


def identify(source: bytes | BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """A picture of which only the header is read, if its format allows; `formats` as Pillow names them, None for all.

    Sizes are for the caller to check: Pillow's own limit is no part of this. Raises UnidentifiedImageError.
    """
    Image.init()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    begin = file.read(MARK_BYTES)
    kind = _further(begin)
    if kind is not None:
        _register(kind)
    for name in _ordered() if formats is None else formats:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(begin) is not True):
            continue
        try:
            file.seek(0)
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error):
            continue
    if kind is not None:
        raise InputError(f"it is a {kind} picture; run: pip install {PACKAGES[kind][1]}, or convert it to JPEG")
    raise UnidentifiedImageError


def decoded(name: str, action: Callable[[], Opened]) -> Opened:
    """Run a step of Pillow, whose decoders raise many kinds of errors for damaged files; all become InputError."""
    try:
        return action()
    except InputError as error:
        raise InputError(f"{name} cannot be read: {error}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large to decode ({error}); scale it down first") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image of a known format; expected {EXPECTED}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name} is not a readable image ({reason}); expected {EXPECTED}") from None


def _ordered() -> Iterator[str]:
    """All formats, those first that a mark tells from others."""
    names = [name for name in Image.ID if name not in LEFT_OUT]
    return iter(sorted(names, key=lambda name: (name not in MARKED, Image.OPEN[name][1] is None)))


def _further(begin: bytes) -> str | None:
    """The kind of a file that Pillow reads with another package."""
    if begin[:2] == b"\xff\x0a" or begin[4:12] == b"JXL \r\n\x87\n":
        return "JPEG XL"
    return FURTHER.get(begin[8:12]) if begin[4:8] == b"ftyp" else None


def _register(kind: str) -> None:
    """Let the package for a kind of file make itself known to Pillow, where it is installed."""
    try:
        module = importlib.import_module(PACKAGES[kind][0])
    except ImportError:
        return
    if kind == "HEIC":
        module.register_heif_opener()
