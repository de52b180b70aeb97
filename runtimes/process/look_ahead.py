"""Items of which each is made, in a thread of its own, while the caller works with the one before."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from .cores import giving_way
from .interrupt import LOOK_AGAIN, Interrupt, check, heeding

T = TypeVar("T")
END = object()


@contextmanager
def one_ahead(items: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """The items, each made while the caller works with the one before, and never more than one ahead.

    Until the first is there, and whenever the caller waits for one, it is made with all threads that the caller may
    use; else with one. What fails in making an item is raised in its place. Waiting raises Interrupted where the
    caller's work is to end. Leaving the context ends the thread, and what it makes where that heeds an interrupt.
    """
    ahead = _Ahead(items)
    try:
        yield ahead.taken()
    finally:
        ahead.close()
        items.close()


class _Ahead(Generic[T]):
    """The thread, and whether the caller works meanwhile."""

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items, self._ended, self._working = items, Interrupt(), False
        self._context, self._pool = copy_context(), ThreadPoolExecutor(1, "lensmith-ahead")

    def taken(self) -> Iterator[T]:
        """The items; while the next is made nothing here refers to the one before the latest."""
        making = self._begun()
        while (item := self._waited_for(making)) is not END:
            making = self._begun()
            self._working = True
            yield item
            self._working = False

    def close(self) -> None:
        """Return when the thread has ended."""
        self._ended.stop()
        self._pool.shutdown(cancel_futures=True)

    def _begun(self) -> Future[Any]:
        return self._pool.submit(self._context.run, self._next)

    def _next(self) -> Any:
        """In the thread."""
        with heeding(self._ended), giving_way(lambda: self._working):
            return next(self._items, END)

    def _waited_for(self, making: Future[Any]) -> Any:
        check()
        while not wait([making], LOOK_AGAIN).done:
            check()
        return making.result()
