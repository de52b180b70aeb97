"""States of a conversation in ONNX Runtime: buffers that are bound once, so that steps write in place."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import Floats, Ints, Kept, KeptTokens
from ..states import CACHE, RECURRENT, EngineStates
from .buffers import Buffers
from .state_replay import StateReplay

CACHE_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16), "tensor(int8)": np.dtype(np.int8),
}  # fmt: skip


def _lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that take memory page by page when touched; on Linux numpy's own would take 2 MB at a time.

    The memory is private: a forked process writes into its own.
    """
    if sys.platform != "linux":
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # which a kernel for small devices may lack
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


class BoundStates(EngineStates):
    """Buffers that are past and present at once, so that each step writes in place.

    A KV cache is [1, kv_heads, capacity, head_dim], float32, float16 or int8. Its memory is touched only as far as
    tokens reach, so a large capacity costs address space alone. Recurrent states have a second set of buffers from the
    first step on whose tokens may be forgotten: such a step writes there, and leaves what was before.
    """

    sharing = Kept.ROWS

    def __init__(self, inputs: Iterable[Any], capacity: int, replay: StateReplay | None = None) -> None:
        recurrent: dict[str, Floats] = {}
        caches: dict[str, NDArray[Any]] = {}
        for value in inputs:
            if value.name.startswith(CACHE):
                shape = (1, value.shape[1], capacity, value.shape[3])
                caches[value.name] = _lazy_zeros(shape, CACHE_TYPES[value.type])
            elif value.name.startswith(RECURRENT):
                recurrent[value.name] = np.zeros((1, *value.shape[1:]), np.float32)
        self._caches, self._recurrent, self._replay = Buffers(caches), Buffers(recurrent), replay
        self._before: Buffers | None = None  # of recurrent states, as they were in front of `_rows`
        self._rows: list[Floats] = []
        self.bound: dict[Any, Any] = {}  # steps of few tokens, used again and again
        self.room: dict[Any, dict[str, Floats]] = {}  # for what these give
        super().__init__(recurrent=bool(recurrent))

    @property
    def side(self) -> int:
        """What distinguishes steps that read the present set of buffers from those that read the other."""
        return id(self._recurrent)

    def bind(self, binding: Any, *, keep: bool = False) -> None:
        """Bind all buffers to the inputs and outputs of a step, of recurrent states others with `keep`."""
        for buffers in (self._caches, self._recurrent):
            buffers.feed(binding)
        for buffers in (self._caches, self._other() if keep else self._recurrent):
            buffers.take(binding)

    def turn(self, rows: list[Floats]) -> None:
        """A step wrote to the other buffers: these count from now on, and `rows` lead there."""
        self._before, self._recurrent, self._rows = self._recurrent, self._other(), rows

    def copies(self) -> dict[str, Floats]:
        """Copies of the recurrent states by the names of their inputs."""
        return {name: state.copy() for name, state in self._recurrent.arrays.items()}

    def cached(self, length: int) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
        """Views of the keys and values [kv_heads, length, head_dim] of the first tokens, by layer."""
        first = {name: cache[0, :, :length] for name, cache in self._caches.arrays.items()}
        layers = sorted({int(name.split(".")[1]) for name in first})
        return {layer: (first[f"{CACHE}{layer}.key"], first[f"{CACHE}{layer}.value"]) for layer in layers}

    def keep(self, begin: int) -> KeptTokens:
        """As States.keep."""
        rows = {name: cache[0, :, begin : self.length].copy() for name, cache in self._caches.arrays.items()}
        return {**rows, **(self._saved.get(self.length) or self.copies())}

    def _other(self) -> Buffers:
        if self._before is None:
            self._before = Buffers({name: np.zeros_like(state) for name, state in self._recurrent.arrays.items()})
        return self._before

    def _copy(self) -> dict[str, Floats]:
        return self.copies()

    def _restore(self, length: int) -> None:
        if self._replay is not None and self.length - self.undoable <= length < self.length:
            left = [rows[:, : length - self.length] for rows in self._rows]
            self._replay(left, self._other(), self._recurrent)
            return
        copies = self._saved.get(length, {})
        for name, state in self._recurrent.arrays.items():
            state[:] = copies.get(name, 0)

    def _adopt(self, parts: Sequence[tuple[int, KeptTokens]], positions: Ints, wanted: int, known: int) -> int:
        ends = [*(begin for begin, _ in parts[1:]), wanted]
        for (begin, kept), end in zip(parts, ends, strict=True):
            for name, cache in self._caches.arrays.items():
                rows, (_, heads, _, width) = kept[name], cache.shape
                if rows.dtype != cache.dtype or rows.shape[::2] != (heads, width) or rows.shape[1] < end - begin:
                    raise ValueError(f"{name} is {rows.dtype} {list(rows.shape)}")
                first = max(known, begin)
                if first < end:
                    cache[0, :, first:end] = rows[:, first - begin : end - begin]
        for name, state in self._recurrent.arrays.items():
            if parts[-1][1][name].shape != state.shape:
                raise ValueError(f"{name} is {list(parts[-1][1][name].shape)}")
            state[:] = parts[-1][1][name]
        return wanted
