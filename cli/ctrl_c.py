"""Ctrl-C as KeyboardInterrupt, but never in the middle of an import: native libraries abort the process on that."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

MOST_S = 30.0  # how long to wait for the end of an import


def wait_for_imports() -> None:
    """Let Ctrl-C wait for the end of an import, unless this process ignores or handles it in its own way."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, CtrlC())


class CtrlC:
    """The handler of the signal. What Python tells profilers, calls and returns, tells it that an import is over."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.over = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.since = self.since or time.monotonic()
        if not _importing(frame):
            self.stop()
        self.over = False
        sys.setprofile(self.look)

    def look(self, frame: FrameType, event: str, _: Any) -> None:
        """Stop at the first call or return behind the outermost import."""
        assert self.since is not None
        if time.monotonic() - self.since > MOST_S or (self.over and not _importing(frame)):
            self.stop()
        if event == "return" and _imports(frame):
            self.over = not _importing(frame.f_back)

    def stop(self) -> None:
        """Raise KeyboardInterrupt, once for all signals that came so far."""
        sys.setprofile(None)
        self.since = None
        raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if _imports(frame):
            return True
        frame = frame.f_back
    return False


def _imports(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith("<frozen importlib")
