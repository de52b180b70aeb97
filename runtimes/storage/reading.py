"""Files from outside, read up to a limit of bytes that are counted, whatever the system says of their size.

Pipes, devices and files that the kernel makes up (/proc) have no size; a pipe may have no writer, and a device no end.
"""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import sys
import time
from pathlib import Path

from ...targets.errors import InputError

log = logging.getLogger(__name__)

MOST_STREAMED = 1 << 26  # bytes of what has no size: all of it is kept in memory until its end is seen
# How long a pipe may have no writer, how long a writer may take to begin, and how long to go on. A pipe that the shell
# hands over, `<(curl …)`, has a program behind it, whose first byte may come from afar: that wait is announced.
WITHOUT_WRITER_S, BEGINNING_S, SILENT_S = 0.5, 0.8, 10.0
_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_limited(path: str | os.PathLike[str], most_bytes: int, expected: str) -> bytes:
    """All bytes of a file; `expected` says in messages what it should be ("the path of an image file").

    InputError for more than `most_bytes`, or MOST_STREAMED of a stream, and for what cannot be read or stays silent.
    """
    name = os.fspath(path)[:200]
    try:
        with open(path, "rb", buffering=0, opener=lambda path, _: os.open(path, _FLAGS)) as file:
            size = sized(file.fileno())
            most = most_bytes if size else min(most_bytes, MOST_STREAMED)
            content = (
                b"" if size and size > most else _content(file, most, SILENT_S if _handed_over(path) else BEGINNING_S)
            )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} cannot be read ({reason}); expected {expected}") from None
    if len(content) > most or (size and size > most):
        has = f"has {size} bytes, more than the limit of" if size else "is a stream of more than"
        raise InputError(f"{name} {has} {most} bytes; expected {expected}, and a smaller file")
    return content


def read_utf8(path: str | os.PathLike[str], most_bytes: int, expected: str) -> str:
    """The text of a file in UTF-8; InputError as of `read_limited`, and for other bytes."""
    try:
        return read_limited(path, most_bytes, expected).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); expected {expected}"
        ) from None


def sized(file: int | Path) -> int | None:
    """The size in bytes of an ordinary file; None for all others, and for those of size 0, which may be made up."""
    status = os.stat(file)
    return status.st_size or None if stat.S_ISREG(status.st_mode) else None


def _handed_over(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a descriptor without a name in any folder, /dev/fd/63 or /dev/stdin."""
    return not os.path.exists(os.path.realpath(path))


def _content(file: io.FileIO, most: int, beginning: float) -> bytes:
    """What is in a file, up to one byte more than `most`; `beginning`: seconds that a writer may take to begin."""
    if file.isatty():
        raise OSError(None, "a terminal")
    content, patience = io.BytesIO(), WITHOUT_WRITER_S
    pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    while content.tell() <= most:
        piece = file.read(min(_PIECE, most + 1 - content.tell()))
        if piece:
            content.write(piece)
        elif piece is None:  # there is a writer
            _wait(file, WITHOUT_WRITER_S if not pipe else SILENT_S if content.tell() else beginning)
        elif content.tell() or not pipe or not patience:
            break
        else:
            _wait(file, patience, must=False)
            patience = 0.0
    if not patience and not content.tell():
        raise OSError(None, "a pipe that nobody writes into")
    return content.getvalue()


def _wait(file: io.FileIO, seconds: float, *, must: bool = True) -> None:
    """Wait until there is something to read; an OSError where that `must` come and does not."""
    announced = min(seconds, BEGINNING_S)
    if _comes(file, announced):
        return
    if seconds > announced:
        log.warning("waiting up to %g s for the program that writes %s", seconds, file.name)
    if not _comes(file, seconds - announced) and must:
        raise OSError(None, f"a stream in which nothing came for {seconds:g} s")


if sys.platform == "win32":  # where reading waits by itself, and select knows sockets alone

    def _comes(file: io.FileIO, seconds: float) -> bool:
        time.sleep(seconds)
        return True

else:

    def _comes(file: io.FileIO, seconds: float) -> bool:
        """Whether there is something to read, or the end, within some time."""
        poll = select.poll()
        poll.register(file, select.POLLIN)
        return bool(poll.poll(1000 * seconds))
