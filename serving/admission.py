"""Who may answer now, who waits, and who is told to come back later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .server_errors import Refusal

RETRY_SECONDS = 1  # told to clients that found the queue full


class Admission:
    """Places for answers, in the order in which requests came; beyond `queue` waiting ones, status 429."""

    def __init__(self, places: int, queue: int) -> None:
        self.queue = queue
        self.waiting = self.running = 0
        self.closed = False
        self._places = asyncio.Semaphore(places)  # first come, first served

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One place, once there is one. Raises Refusal where too many wait, or the server is ending."""
        if self.closed:
            raise Refusal(503, "the server is shutting down; ask another one")
        if self._places.locked() and self.waiting >= self.queue:
            raise Refusal(
                429,
                f"{self.running} answers are being made and {self.waiting} requests wait; try again later",
                code="queue_full",
                retry=RETRY_SECONDS,
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
