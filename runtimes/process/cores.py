"""How many cores the work around the engines may use: resizing and FFmpeg, each of which would take all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

_allowed: ContextVar[int | None] = ContextVar("allowed", default=None)
_busy: ContextVar[Callable[[], bool]] = ContextVar("busy", default=lambda: False)


@contextmanager
def at_most(threads: int | None) -> Iterator[None]:
    """Bounds what the caller does meanwhile; None means one thread for each core. Not to be held over a yield."""
    token = _allowed.set(threads)
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def giving_way(busy: Callable[[], bool]) -> Iterator[None]:
    """What the caller does meanwhile takes its thread alone as long as others are `busy`."""
    token = _busy.set(busy)
    try:
        yield
    finally:
        _busy.reset(token)


def allowed() -> int | None:
    """The bound that holds for the caller."""
    return _allowed.get()


def spread(work: Callable[[slice], None], length: int, least: int) -> None:
    """Do `work` on parts of range(length), none shorter than `least`, in as many threads as the caller may use."""
    threads = 1 if _busy.get()() else allowed() or os.cpu_count() or 1
    parts = min(threads, length // max(1, least))
    if parts < 2:
        return work(slice(0, length))
    bounds = [length * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts - 1, "lensmith-resize") as pool:
        first, *others = (slice(*ends) for ends in pairwise(bounds))
        running = [pool.submit(work, part) for part in others]
        work(first)
        for other in running:
            other.result()
