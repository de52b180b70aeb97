"""Ends work in one thread because another one says so: between two steps, or within one where an engine can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOOK_AGAIN = 0.1  # seconds after which work that waits for its turn looks whether it is still wanted


class Interrupted(Exception):
    """The work was ended: nobody wants its result any more."""


class Interrupt:
    """Says once, for good, that some work is to end."""

    def __init__(self) -> None:
        self._lock, self.stopped = threading.RLock(), False
        self._ends: list[Callable[[], None]] = []

    def stop(self) -> None:
        """End the work that `heeding` this, from any thread."""
        self.stopped = True
        with self._lock:
            for end in self._ends:
                end()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` when it stops meanwhile."""
        with self._lock:
            self._ends.append(end)
            if self.stopped:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


_heeded: ContextVar[Interrupt | None] = ContextVar("heeded", default=None)


@contextmanager
def heeding(interrupt: Interrupt) -> Iterator[None]:
    """What the caller does meanwhile ends with Interrupted once that stops. Not to be held over a yield."""
    token = _heeded.set(interrupt)
    try:
        yield
    finally:
        _heeded.reset(token)


def check() -> None:
    """Raise Interrupted where the caller's work is to end."""
    interrupt = _heeded.get()
    if interrupt is not None and interrupt.stopped:
        raise Interrupted


@contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Surrounds a step that `end` breaks off; what it raises then is Interrupted."""
    interrupt = _heeded.get()
    if interrupt is None:
        yield
        return
    try:
        with interrupt.ending(end):
            yield
    except Exception as error:
        if interrupt.stopped:
            raise Interrupted from error
        raise


@contextmanager
def in_turn(lock: threading.Lock) -> Iterator[None]:
    """Holds a lock, for which work that is no longer wanted does not wait."""
    check()
    while not lock.acquire(timeout=LOOK_AGAIN):
        check()
    try:
        check()
        yield
    finally:
        lock.release()
