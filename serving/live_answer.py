"""Answers that threads make while tasks of the server read them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from ..runtimes.dialogue.events import Event
from ..runtimes.generation.answer import Answer
from .admission import Admission
from .server_errors import Refusal

END = object()
Result = TypeVar("Result")


@dataclass(frozen=True)
class Beginning:
    """An answer whose prompt is checked, and its events, which are still to be made."""

    answer: Answer
    events: Iterator[Event]


@dataclass(frozen=True)
class Begun:
    """The next answer begins."""

    answer: Answer


@dataclass(frozen=True)
class Made:
    """One event of the answer, when it had so many tokens."""

    event: Event
    length: int


@dataclass(eq=False)
class LiveAnswer:
    """Answers to one request, one behind the other, made in a thread that holds a place until it has ended.

    `begins` gives what prepares them, in the thread. Whoever reads lets go by leaving `read`: the thread then stops at
    its next token.
    """

    begins: Callable[[], Sequence[Callable[[], Beginning]]]
    admission: Admission
    executor: Executor
    deadline: float  # of time.monotonic()
    _items: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _first: list[Any] = field(default_factory=list)  # read by `start`
    _now: Answer | None = None
    _stopped: bool = False
    _holding: asyncio.Task[None] | None = None
    _entered: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Wait for a place and for the first event. Raises Refusal, and what the runtime says of the prompt."""
        loop = asyncio.get_running_loop()
        self._entered = loop.create_future()
        self._holding = asyncio.create_task(self._hold(loop, self._entered))
        try:
            await asyncio.wait_for(asyncio.shield(self._entered), self._left())
            self._first = [await self._next()]
        except TimeoutError:
            self.stop()
            raise _late() from None
        except BaseException:
            self.stop()
            raise

    async def read(self) -> AsyncIterator[Begun | Made]:
        """What the thread makes; raises its errors, and Refusal at the deadline."""
        try:
            while (item := await self._next()) is not END:
                yield item
        except TimeoutError:
            raise _late() from None
        finally:
            self.stop()

    def stop(self) -> None:
        """End it at the next token."""
        self._stopped = True
        if self._now is not None:
            self._now.close()
        elif self._holding is not None and self._entered is not None and not self._entered.done():
            self._holding.cancel()  # it still waits for its place

    async def _hold(self, loop: asyncio.AbstractEventLoop, entered: asyncio.Future[None]) -> None:
        """In a task of its own, so that the place is held as long as the thread works, whoever has gone."""
        try:
            async with self.admission.place():
                entered.set_result(None)
                await loop.run_in_executor(self.executor, self._work, loop)
        except Refusal as refusal:
            entered.set_exception(refusal)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        def put(item: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._items.put_nowait, item)

        try:
            for begin in self.begins():
                if self._stopped:
                    break
                beginning = begin()
                self._now = beginning.answer
                if self._stopped:
                    beginning.answer.close()
                self._pass_on(beginning, put)
            put(END)
        except Exception as error:  # the reader's, whoever that is
            put(error)

    def _pass_on(self, beginning: Beginning, put: Callable[[Any], None]) -> None:
        """An answer has begun with its first event: what is wrong before, in a picture, has a status of its own."""
        events = iter(beginning.events)
        first = [*islice(events, 1)]
        put(Begun(beginning.answer))
        for event in chain(first, events):
            put(Made(event, len(beginning.answer.ids)))

    async def _next(self) -> Any:
        item = self._first.pop() if self._first else await asyncio.wait_for(self._items.get(), self._left())
        if isinstance(item, BaseException):
            raise item
        return item

    def _left(self) -> float:
        return max(0.001, self.deadline - time.monotonic())


def _late() -> Refusal:
    return Refusal(504, "the answer was not done at its deadline; ask for fewer tokens, or for a longer deadline",
                   code="deadline_exceeded")  # fmt: skip


class ClientGone(Exception):
    """Nobody waits for the response any more."""


async def unless_gone(http: HttpRequest, work: Awaitable[Result]) -> Result:
    """The result of some work, which is cancelled when the client closes its connection. Raises ClientGone."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
