"""The standard streams of the command line: always there, and no reason to lose work; and text that comes in, in UTF-8.

A stream that is closed or that nobody reads any more takes no part in the work: what goes to it is dropped. Only
commands that do nothing but print stop when that fails.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from ..targets.errors import InputError

MOST_TEXT = 1 << 24  # bytes of text on standard input, or of one line of it
NAMES = ("stdin", "stdout", "stderr")
# What a system says when nobody reads a pipe any more. What is written is right, so that Windows' EINVAL means no more.
UNREAD = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)


class Outlet(io.RawIOBase):
    """An output that keeps its first error instead of raising it, unless `stops`, and drops what comes after."""

    def __init__(self, raw: io.RawIOBase, name: str, *, stops: bool) -> None:
        self.raw, self.stream, self.stops = raw, name, stops
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                while (count := self.raw.write(data)) is None:  # a pipe that does not block and is full
                    select.select([], [self.raw], [])
                return count
            except OSError as error:
                number = errno.EPIPE if error.errno in UNREAD else error.errno
                self.error = OSError(number, error.strerror, self.stream)
                if self.stops:
                    raise self.error from None
        return len(data)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.raw.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()


def open_streams(*, stops: bool) -> list[Outlet]:
    """Put an `Outlet` behind standard output and standard error; `stops` says whether a failing output ends the work.

    Closed streams lead nowhere, and their descriptors are taken, so that no other file gets them.
    """
    for name in NAMES:
        if getattr(sys, name) is None:
            opened = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115  (for the whole run)
            if name != "stdin":  # which a command that reads it must see to be missing
                setattr(sys, name, opened)
            KEPT.append(opened)
    outlets = [_outlet("stdout", "standard output", stops=stops), _outlet("stderr", "standard error", stops=False)]
    return [outlet for outlet in outlets if outlet is not None]


def _outlet(attribute: str, name: str, *, stops: bool) -> Outlet | None:
    """The outlet that now stands behind a stream of `sys`; None for a stream of an embedding program without bytes."""
    stream: TextIO = getattr(sys, attribute)
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        return None
    outlet = Outlet(getattr(buffer, "raw", buffer), name, stops=stops)
    text = io.TextIOWrapper(io.BufferedWriter(outlet), _encoding(stream), "replace", line_buffering=stream.isatty())
    setattr(sys, attribute, text)
    return outlet


def _encoding(stream: TextIO) -> str:
    """What a stream is written in: as Python has it, but for pipes and files of Windows, whose old code pages lack most
    letters of an answer: UTF-8, as text that comes in, unless PYTHONIOENCODING asks for another one.
    """
    return "utf-8" if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ else stream.encoding


def close_streams(outlets: list[Outlet]) -> OSError | None:
    """Write out what is left; the error of standard output other than that nobody reads it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    errors = [outlet.error for outlet in outlets if outlet.stream == "standard output" and outlet.error is not None]
    return next((error for error in errors if error.errno not in (errno.EPIPE, errno.EBADF)), None)


KEPT: list[TextIO] = []  # files on the descriptors of closed streams, open until the process ends


def unicode(text: str, what: str) -> str:
    """Text as Unicode, which Python gives with single surrogates for bytes that its encoding does not know.

    An InputError where these are not UTF-8.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise InputError(f"{what} {ascii(text)[:200]} is not UTF-8 text; write it in UTF-8, as names of files "
                         "must be, too") from None  # fmt: skip


def read_text() -> str:
    """All of standard input; InputError where it is closed, too long or not UTF-8."""
    return _decoded(_bytes_in().read(MOST_TEXT + 1))


def read_line() -> str | None:
    """The next line of standard input without its end, None behind the last one; InputError as `read_text` has it."""
    line = _decoded(_bytes_in().readline(MOST_TEXT + 1))
    return line.rstrip("\r\n") if line else None


def _bytes_in() -> Any:
    if sys.stdin is None:
        raise InputError("standard input is closed; write the text into it, or give it as an argument")
    return getattr(sys.stdin, "buffer", sys.stdin)


def _decoded(data: bytes | str) -> str:
    if len(data) > MOST_TEXT:
        raise InputError(f"standard input holds more than {MOST_TEXT} bytes of text; expected a question")
    if isinstance(data, str):  # of a stream that an embedding program put there
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (byte {data[error.start]:#x} at {error.start}); "
                         "convert it with: iconv -t UTF-8") from None  # fmt: skip
