"""Keeps other processes away from a file or a folder while one writes there; a process that is killed lets go."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BESIDE = ".lock"  # behind the name of a folder: the file that stands for it on Windows
LOOK_AGAIN = 0.05  # seconds until Windows is asked again: it lets nobody wait for more than ten


@contextmanager
def held(place: Path, *, wait: bool) -> Iterator[None]:
    """Hold what lies at a path; BlockingIOError where another one has it and this is not to `wait`.

    Windows locks no folders. There, a file beside the folder stands for it, which goes afterwards.
    """
    descriptor = _open(place)
    try:
        while not _lock(descriptor, wait):
            time.sleep(LOOK_AGAIN)
        yield
    finally:
        os.close(descriptor)
        _tidy(place)


if sys.platform == "win32":
    import msvcrt

    def _beside(folder: Path) -> Path:
        return folder.with_name(folder.name + BESIDE)

    def _open(place: Path) -> int:
        return os.open(_beside(place) if place.is_dir() else place, os.O_RDWR | os.O_CREAT)

    def _lock(descriptor: int, wait: bool) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if not wait:
                raise BlockingIOError(error.errno, error.strerror) from error
            return False
        return True

    def _tidy(place: Path) -> None:
        with suppress(OSError):  # another process has it open
            _beside(place).unlink()

else:
    import fcntl

    def _open(place: Path) -> int:
        return os.open(place, os.O_RDONLY)

    def _lock(descriptor: int, wait: bool) -> bool:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True

    def _tidy(place: Path) -> None:
        """Nothing was made."""
