"""Standard streams as Windows has them: pipes in an old code page, and an error of its own when nobody reads one."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import pytest

from tests.helpers.windows import as_on_windows

ANSWER = "Straße 東京 \N{GRINNING FACE}"


class Pipe(io.RawIOBase):
    """Keeps what is written, or refuses it."""

    def __init__(self, refused: int = 0) -> None:
        self.refused, self.content = refused, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.refused:
            raise OSError(self.refused, "Invalid argument")
        self.content += bytes(data)
        return len(data)


def said(monkeypatch: pytest.MonkeyPatch, pipe: Pipe, *, system: str = "win32") -> OSError | None:
    """Print the answer; the error that is left when the command ends."""
    streams = as_on_windows("cli.standard_streams", monkeypatch)
    for name in ("stdout", "stderr"):
        raw = pipe if name == "stdout" else Pipe()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), "cp1252"))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(sys, "platform", system)
        outlets = streams.open_streams(stops=False)
    print(ANSWER)
    left: OSError | None = streams.close_streams(outlets)
    return left


def test_what_goes_into_a_pipe_is_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    assert said(monkeypatch, pipe := Pipe()) is None
    assert pipe.content.decode().rstrip() == ANSWER


@pytest.mark.parametrize(("system", "setting"), [("win32", "cp1252"), ("linux", None)])
def test_unless_the_user_says_otherwise(system: str, setting: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if setting:
        monkeypatch.setenv("PYTHONIOENCODING", setting)
    said(monkeypatch, pipe := Pipe(), system=system)
    assert pipe.content.decode("cp1252").rstrip() == "Straße ?? ?"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EINVAL, errno.ENOSPC])
def test_nobody_reads_the_pipe(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = said(monkeypatch, Pipe(number))
    assert (left and left.errno) == (errno.ENOSPC if number == errno.ENOSPC else None)
