"""What llama.cpp keeps of a conversation, addressed by tokens: it counts by rotary positions itself."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....targets.errors import LensmithError
from ..contract import Ints, Kept, KeptTokens
from ..states import EngineStates
from .library import (
    MESSAGES,
    LlamaModel,
    llama,
    refused,
)

STATE = "state"  # all of llama.cpp's cells


class LlamaStates(EngineStates):
    """A context of llama.cpp, freed with the object.

    llama.cpp forgets by position, and all tokens of an image share one on the axis of time: an image is forgotten as
    a whole. What a step that failed has left is not known, so everything is forgotten behind one.
    """

    sharing = Kept.WHOLE

    def __init__(self, model: LlamaModel, options: Any, capacity: int) -> None:
        super().__init__(recurrent=model.recurrent)
        MESSAGES.clear()
        self.model, self._free = model, llama().llama_free
        self.context = llama().llama_init_from_model(model.handle, options)
        if not self.context:
            raise refused(model.path, f"given a context of {capacity} tokens")
        self._positions = np.zeros(capacity, np.int64)  # of each token, on the axis of time

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self._free(self.context)
            self.context = None

    def note(self, positions: Ints) -> None:
        """Note the tokens of a step by their positions on the axis of time."""
        self._positions[self.length : self.length + len(positions)] = positions

    def reach(self, wanted: int) -> int:
        """As States.reach."""
        if self._torn:
            return 0
        if self.recurrent or wanted >= self.length:
            return super().reach(wanted)
        return int(np.searchsorted(self._positions[: self.length], self._positions[wanted]))

    def _restore(self, length: int) -> None:
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

    def _copy(self) -> bytes:
        library = llama()
        partial = library.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = library.llama_state_seq_get_size_ext(self.context, 0, partial)
        buffer = (ctypes.c_uint8 * size)()
        library.llama_state_seq_get_data_ext(self.context, buffer, size, 0, partial)
        return bytes(buffer)

    def keep(self, begin: int) -> KeptTokens:
        """As States.keep; llama.cpp gives all of its cells at once."""
        library = llama()
        state = np.empty(library.llama_state_seq_get_size(self.context, 0), np.uint8)
        address = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = int(library.llama_state_seq_get_data(self.context, address, len(state), 0))
        return {STATE: state[:written]}

    def _adopt(self, parts: Sequence[tuple[int, KeptTokens]], positions: Ints, wanted: int, known: int) -> int:
        library, state = llama(), np.ascontiguousarray(parts[-1][1][STATE])
        library.llama_memory_clear(library.llama_get_memory(self.context), False)
        address = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not library.llama_state_seq_set_data(self.context, address, len(state), 0):
            raise ValueError("llama.cpp does not take it")
        self.note(positions[0])
        return int(positions.shape[1])
