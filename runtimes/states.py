"""What a decoder hands from step to step: KV caches, which are cut by length, and recurrent states, which are saved."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CACHE, RECURRENT = "past_key_values.", "past."  # beginnings of the names of inputs
CACHE_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int8)": np.dtype(np.int8)}
SAVED = 2  # copies of the recurrent states; each takes their size, 20 MB for a model of 2 billion parameters


def _lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that take memory page by page when touched; numpy's own would take 2 MB at a time from the system."""
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


class States:
    """Buffers of one conversation, bound once as past and as present, so that each step writes in place.

    A KV cache [1, kv_heads, capacity, head_dim], float32 or int8, keeps every token: forgetting the last ones takes
    nothing. A recurrent state has a fixed size and all tokens in it: it goes back to a length only where a copy was
    saved.
    """

    def __init__(self, inputs: Iterable[Any], capacity: int) -> None:
        self._recurrent: dict[str, Floats] = {}
        self._caches: dict[str, NDArray[Any]] = {}
        self._buffers: dict[str, Any] = {}
        self._saved: dict[int, dict[str, Floats]] = {}  # by length, the oldest first
        for value in inputs:
            if value.name.startswith(CACHE):
                shape = (1, value.shape[1], capacity, value.shape[3])
                array = self._caches[value.name] = _lazy_zeros(shape, CACHE_TYPES[value.type])
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

    def cached(self, length: int) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
        """Views of the keys and values [kv_heads, length, head_dim] of the first tokens, by layer."""
        first = {name: cache[0, :, :length] for name, cache in self._caches.items()}
        layers = sorted({int(name.split(".")[1]) for name in first})
        return {layer: (first[f"{CACHE}{layer}.key"], first[f"{CACHE}{layer}.value"]) for layer in layers}

    def bind(self, binding: Any) -> None:
        """Bind all buffers to the inputs and outputs of a step."""
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace(CACHE, "present.").replace(RECURRENT, "present."), buffer)

    def save(self, length: int) -> None:
        """Keep a copy of the recurrent states behind `length` tokens, in place of the oldest one."""
        if self.recurrent:
            self._saved.pop(length, None)
            while len(self._saved) >= SAVED:
                del self._saved[next(iter(self._saved))]
            self._saved[length] = self.copies()

    def reach(self, length: int, wanted: int) -> int:
        """The longest length up to `wanted` that states behind `length` tokens can go back to."""
        if wanted >= length or not self.recurrent:
            return min(wanted, length)
        return max((saved for saved in self._saved if saved <= wanted), default=0)

    def rewind(self, length: int, wanted: int) -> int:
        """Go back from `length` tokens to what `reach` says, and give that length."""
        reached = self.reach(length, wanted)
        if reached < length:
            self._restore(self._saved.get(reached, {}))
        self._saved = {saved: states for saved, states in self._saved.items() if saved <= reached}
        return reached

    def _restore(self, copies: Mapping[str, Floats]) -> None:
        """Set the recurrent states to copies; those without one to zeros."""
        for name, state in self._recurrent.items():
            state[:] = copies.get(name, 0)
