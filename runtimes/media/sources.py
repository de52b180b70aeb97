"""Images and videos as callers hand them over, as one of three things: an image object, bytes or a path."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ...targets.errors import InputError

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray[Any, Any]"
)
"""An image: a path, `file://` or `data:` URL; the bytes of a file, or a file opened for them; one of Pillow's images;
or an array uint8 [height, width, 3] in RGB, [height, width] in grey or [height, width, 4] with alpha."""
_SCHEME = re.compile(r"data(?=:)|file(?=:/)|[a-z][a-z0-9+.-]+(?=://)", re.IGNORECASE)  # of a URL; `C:` is none
_PIECE = 1 << 20


def opened_source(source: Any, what: str, most_bytes: int) -> Image.Image | bytes | Path:
    """An image object, bytes or a path out of what `ImageSource` lists; `what` names it in messages ("an image").

    Arrays are taken as Pillow takes them: uint8 [height, width, 3] in RGB, [height, width] in grey, [height, width, 4]
    with alpha. A file is read from its beginning, up to `most_bytes`. Raises InputError for anything else.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ma.MaskedArray) and source.mask.any():
        raise InputError(f"{what} is an array with a mask, which would not be obeyed; fill it first (.filled)")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str) and (found := _SCHEME.match(source)):
        return _from_url(source, found[0].lower(), what)
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source))
    if callable(getattr(source, "read", None)):
        return _from_file(source, what, most_bytes)
    raise InputError(f"{what} is a {type(source).__name__}; expected a path, file:// or data: URL, bytes, an open "
                     "file, an image object or an array uint8 [height, width, 3]")  # fmt: skip


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    depth = array.shape[2] if array.ndim == 3 else 3
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or depth not in (3, 4) or not array.size:
        hint = ""
        if array.dtype != np.uint8:
            hint = "; scale it to 0 ... 255 and convert it with .astype(numpy.uint8)"
        elif array.ndim == 4:
            hint = "; give its images one by one"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; move its channels to the end"
        raise InputError(f"an image is an array {array.dtype} {list(array.shape)}; expected uint8 [height, width, 3] "
                         f"in RGB, [height, width] in grey or [height, width, 4] with alpha{hint}")  # fmt: skip
    return Image.fromarray(np.ascontiguousarray(array))


def _from_url(url: str, scheme: str, what: str) -> bytes | Path:
    if scheme == "file":
        return _from_file_url(url)
    if scheme == "data":
        return _from_data_url(url, what)
    raise InputError(f"{url[:200]} is not a local file; this runtime opens no network connection, download it first")


def _from_file_url(url: str) -> Path:
    """The path of a file:// URL (RFC 8089), whose %20 and the like are decoded."""
    rest = url[len("file:") :]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost") or not path:
        raise InputError(f"{url[:200]} names the host {host!r}; expected file:// and an absolute path (file:///...)")
    decoded = unquote(path, errors="surrogateescape")  # as os.fsdecode, since names may be any bytes
    return Path(decoded[1:] if os.name == "nt" else decoded)


def _from_data_url(url: str, what: str) -> bytes:
    head, _, content = url.partition(",")
    if not head.lower().endswith(";base64"):
        raise InputError(f"the data URL of {what} begins with {head[:60]!r}; expected data:image/...;base64, and data")
    try:
        return base64.b64decode("".join(unquote(content).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the data URL of {what} is not base64 ({error}); encode the file's bytes") from None


def _from_file(file: Any, what: str, most_bytes: int) -> bytes:
    """The content of an open file from its beginning, so that it can be given again; of a stream what is left."""
    content = bytearray()
    try:
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
        while len(content) <= most_bytes and (piece := file.read(min(_PIECE, most_bytes + 1 - len(content)))):
            content += piece  # a TypeError for text
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} cannot be read from its file ({reason}); open it anew in binary mode") from None
    if len(content) > most_bytes:
        raise InputError(f"{what} has more than the limit of {most_bytes} bytes; give a smaller file, or its path")
    return bytes(content)
