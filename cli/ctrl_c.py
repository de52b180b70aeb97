"""Ctrl-C as KeyboardInterrupt, but never in the middle of an import: native libraries abort the process on that."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from types import FrameType

RETRY_S = 0.005  # how soon to look again whether the import is over; less than the shortest answer takes
MOST_S = 30.0  # how long to wait for that


def wait_for_imports() -> None:
    """Let Ctrl-C wait for the end of an import, unless this process ignores or handles it in its own way."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, CtrlC())


class CtrlC:
    """The handler of the signal."""

    def __init__(self) -> None:
        self.since: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.since = self.since or now
        if _importing(frame) and now - self.since < MOST_S:
            again = threading.Timer(RETRY_S, _thread.interrupt_main, [number])
            again.daemon = True
            again.start()
            return
        self.since = None
        raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
