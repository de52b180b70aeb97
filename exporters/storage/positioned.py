"""Reading and writing at offsets of an open file, from several threads at once, on every system."""

from __future__ import annotations

import os
import sys
import threading


class PositionedFile:
    """A file by its descriptor. Where the system moves one position for all (Windows), threads take turns."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lock = threading.Lock()

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from an offset."""
        if sys.platform != "win32":
            return os.pread(self.descriptor, size, offset)
        with self._lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)

    def write(self, data: bytes, offset: int) -> None:
        """All of `data` to an offset."""
        left = memoryview(data)
        while left:
            written = self._write(left, offset)
            left, offset = left[written:], offset + written

    def _write(self, data: memoryview, offset: int) -> int:
        if sys.platform != "win32":
            return os.pwrite(self.descriptor, data, offset)
        with self._lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.write(self.descriptor, data)
