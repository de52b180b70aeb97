"""The conversations of a model: each answer has one to itself, and leaves it to the next with what it holds."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...targets.errors import InputError
from ..prompt.requests import Request
from .conversation import Conversation

CONVERSATIONS = 4  # answers open at once; each has a KV cache of its own
LOOK_AGAIN = 5.0  # seconds after which a thread that waits looks for answers that nobody refers to any more


class ConversationPool:
    """Conversations that are idle, and those in use, `limit` of both together.

    A thread that uses none waits until one is idle. A thread that uses some would wait for itself, perhaps: it gets an
    error. A further one is made where none is idle, so that questions one behind another take the memory of one.
    """

    def __init__(self, make: Callable[[], Conversation], limit: int) -> None:
        self._make, self.limit = make, limit
        self._idle = [make()]  # the latest used last; one at once, so that what is wrong with it is known
        self._used: list[Conversation] = []
        # Finalizers give back too, and may interrupt this very thread: the lock of a Condition may be taken twice.
        self._changed, self._process = threading.Condition(), os.getpid()

    @contextmanager
    def take(self, request: Request | None = None) -> Iterator[Conversation]:
        """The idle conversation that goes on furthest in a prompt, or without one the latest; else a new one.

        Raises InputError where this thread uses some already and none is left.
        """
        conversation = self._take(request)
        try:
            yield conversation
        finally:
            self._give_back(conversation)

    def start(self, request: Request) -> int:
        """How many tokens of a prompt the idle conversations spare."""
        with self._changed:
            return max((conversation.start(request) for conversation in self._idle), default=0)

    def forget(self) -> None:
        """Empty the idle conversations, and keep the memory of one."""
        with self._changed:
            del self._idle[:-1]
            for conversation in self._idle:
                conversation.forget()

    def _take(self, request: Request | None) -> Conversation:
        with self._changed:
            while not self._idle and len(self._used) >= self.limit:
                gc.collect()  # answers that were left behind in a cycle of references
                if not self._idle:
                    self._check_others()
                    self._changed.wait(LOOK_AGAIN)
            found = self._best(request) if self._idle else self._make()
            found.user = threading.current_thread()
            self._used.append(found)
            return found

    def _best(self, request: Request | None) -> Conversation:
        """Of equals the one that was not used for longest, which leaves the others to those who come back to them."""
        if request is None:
            return self._idle.pop()
        starts = [conversation.start(request) for conversation in self._idle]
        return self._idle.pop(starts.index(max(starts)))

    def _check_others(self) -> None:
        me = threading.current_thread()
        mine = sum(conversation.user is me for conversation in self._used)
        if mine:
            raise InputError(
                f"{len(self._used)} answers are open, {mine} of them in this thread, and the model holds {self.limit}: "
                "read them to their end or close() them first, or load the model with more conversations"
            )

    def _give_back(self, conversation: Conversation) -> None:
        if os.getpid() != self._process:  # it is the parent's, and so may be the lock
            return
        with self._changed:
            self._used.remove(conversation)
            self._idle.append(conversation)
            self._changed.notify()
