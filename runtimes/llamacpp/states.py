"""What llama.cpp keeps of a conversation, addressed by tokens: it counts by rotary positions itself."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ...targets.errors import LensmithError
from ..engine import Ints
from .library import llama

SAVED = 2  # copies of the recurrent states


class LlamaStates:
    """The length of a conversation, and ways back to a shorter one.

    llama.cpp forgets by position, and all tokens of an image share one on the axis of time: an image is forgotten as
    a whole. Recurrent states have all tokens in them and go back to a length only where a copy was saved.
    """

    def __init__(self, context: Any, capacity: int, *, recurrent: bool) -> None:
        self.context, self.recurrent, self.length = context, recurrent, 0
        self._positions = np.zeros(capacity, np.int64)  # of each token, on the axis of time
        self._saved: dict[int, bytes] = {}  # by length, the oldest first

    def append(self, positions: Ints) -> None:
        """Note tokens that were computed, by their positions on the axis of time."""
        self._positions[self.length : self.length + len(positions)] = positions
        self.length += len(positions)

    def reach(self, length: int) -> int:
        """The longest length up to `length` that the states can go back to."""
        if length >= self.length:
            return self.length
        if self.recurrent:
            return max((saved for saved in self._saved if saved <= length), default=0)
        return int(np.searchsorted(self._positions[: self.length], self._positions[length]))

    def rewind(self, length: int) -> int:
        """Go back to what `reach` says, and give that length."""
        reached = self.reach(length)
        if reached < self.length:
            self._forget(reached)
            self.length = reached
        self._saved = {saved: state for saved, state in self._saved.items() if saved <= reached}
        return reached

    def _forget(self, length: int) -> None:
        library, memory = llama(), llama().llama_get_memory(self.context)
        if length == 0:
            library.llama_memory_clear(memory, False)
            return
        if self.recurrent:
            state = self._saved[length]
            buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            partial = library.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
            if not library.llama_state_seq_set_data_ext(self.context, buffer, len(state), 0, partial):
                raise LensmithError(f"llama.cpp could not go back to {length} tokens")
        if not library.llama_memory_seq_rm(memory, 0, int(self._positions[length]), -1):
            raise LensmithError(f"llama.cpp could not forget the tokens behind the first {length}")

    def save(self) -> None:
        """Keep a copy of the recurrent states behind the tokens so far, in place of the oldest one."""
        if not self.recurrent:
            return
        library = llama()
        partial = library.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = library.llama_state_seq_get_size_ext(self.context, 0, partial)
        buffer = (ctypes.c_uint8 * size)()
        library.llama_state_seq_get_data_ext(self.context, buffer, size, 0, partial)
        self._saved.pop(self.length, None)
        while len(self._saved) >= SAVED:
            del self._saved[next(iter(self._saved))]
        self._saved[self.length] = bytes(buffer)
