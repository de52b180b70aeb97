"""What a decoder hands from step to step: KV caches, which are cut by length, and recurrent states, which are saved."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CACHE, RECURRENT = "past_key_values.", "past."  # beginnings of the names of inputs
SAVED = 2  # copies of the recurrent states; each takes their size, 20 MB for a model of 2 billion parameters


def _lazy_zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros that take memory page by page when touched; numpy's own would take 2 MB at a time from the system."""
    memory = mmap.mmap(-1, prod(shape) * 4)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)


class States:
    """Buffers of one conversation, bound once as past and as present, so that each step writes in place.

    A KV cache [1, kv_heads, capacity, head_dim] keeps every token: forgetting the last ones takes nothing. A recurrent
    state has a fixed size and all tokens in it: it goes back to a length only where a copy was saved.
    """

    def __init__(self, inputs: Iterable[Any], capacity: int) -> None:
        self._recurrent: dict[str, Floats] = {}
        self._buffers: dict[str, Any] = {}
        self._saved: dict[int, dict[str, Floats]] = {}  # by length, the oldest first
        for value in inputs:
            if value.name.startswith(CACHE):
                array = _lazy_zeros((1, value.shape[1], capacity, value.shape[3]))
            elif value.name.startswith(RECURRENT):
                array = self._recurrent[value.name] = np.zeros((1, *value.shape[1:]), np.float32)
            else:
                continue
            self._buffers[value.name] = ort.OrtValue.ortvalue_from_numpy(array)

    @property
    def recurrent(self) -> bool:
        """Whether there are states that do not simply get shorter."""
        return bool(self._recurrent)

    def copies(self) -> dict[str, Floats]:
        """Copies of the recurrent states by the names of their inputs."""
        return {name: state.copy() for name, state in self._recurrent.items()}

    def bind(self, binding: Any) -> None:
        """Bind all buffers to the inputs and outputs of a step."""
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace(CACHE, "present.").replace(RECURRENT, "present."), buffer)

    def save(self, length: int) -> None:
        """Keep a copy of the recurrent states behind `length` tokens, in place of the oldest one."""
        if self._recurrent:
            self._saved.pop(length, None)
            while len(self._saved) >= SAVED:
                del self._saved[next(iter(self._saved))]
            self._saved[length] = self.copies()

    def reach(self, length: int, wanted: int) -> int:
        """The longest length up to `wanted` that states behind `length` tokens can go back to."""
        if wanted >= length or not self._recurrent:
            return min(wanted, length)
        return max((saved for saved in self._saved if saved <= wanted), default=0)

    def rewind(self, length: int, wanted: int) -> int:
        """Go back from `length` tokens to what `reach` says, and give that length."""
        reached = self.reach(length, wanted)
        if reached < length:
            copies = self._saved.get(reached, {})
            for name, state in self._recurrent.items():
                state[:] = copies.get(name, 0)
        self._saved = {saved: states for saved, states in self._saved.items() if saved <= reached}
        return reached
