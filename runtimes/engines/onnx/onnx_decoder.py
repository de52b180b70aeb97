"""Decoders of the ort dialect on ONNX Runtime: steps in place, over buffers that are bound once for a conversation."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..contract import Floats, ImageFeatures, Ints, Kept, KeptTokens, Step
from ..decoding import EngineDecoder
from ..refusals import refusal_is_input
from ..states import CACHE, RECURRENT, EngineStates
from .hidden_graph import with_hidden_states
from .sessions import session

HIDDEN, DRAFT_HIDDEN = "hidden_states", "draft_hidden_states"  # outputs
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


@dataclass
class BoundStep:
    """Bound inputs and outputs of steps with the same number of tokens, logits and image tokens."""

    session: ort.InferenceSession
    binding: Any
    arrays: dict[str, NDArray[Any]]
    logits: Floats
    hidden_states: Floats | None  # [1, positions, hidden]


class BoundStates(EngineStates):
    """Buffers that are past and present at once, so that each step writes in place.

    A KV cache is [1, kv_heads, capacity, head_dim], float32, float16 or int8. Its memory is touched only as far as
    tokens reach, so a large capacity costs address space alone.
    """

    sharing = Kept.ROWS

    def __init__(self, inputs: Iterable[Any], capacity: int) -> None:
        self._recurrent: dict[str, Floats] = {}
        self._caches: dict[str, NDArray[Any]] = {}
        for value in inputs:
            if value.name.startswith(CACHE):
                shape = (1, value.shape[1], capacity, value.shape[3])
                self._caches[value.name] = _lazy_zeros(shape, CACHE_TYPES[value.type])
            elif value.name.startswith(RECURRENT):
                self._recurrent[value.name] = np.zeros((1, *value.shape[1:]), np.float32)
        arrays = {**self._caches, **self._recurrent}
        self._buffers = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        self.single: BoundStep | None = None  # for one token, used again and again
        super().__init__(recurrent=bool(self._recurrent))

    def bind(self, binding: Any) -> None:
        """Bind all buffers to the inputs and outputs of a step."""
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace(CACHE, "present.").replace(RECURRENT, "present."), buffer)

    def copies(self) -> dict[str, Floats]:
        """Copies of the recurrent states by the names of their inputs."""
        return {name: state.copy() for name, state in self._recurrent.items()}

    def cached(self, length: int) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
        """Views of the keys and values [kv_heads, length, head_dim] of the first tokens, by layer."""
        first = {name: cache[0, :, :length] for name, cache in self._caches.items()}
        layers = sorted({int(name.split(".")[1]) for name in first})
        return {layer: (first[f"{CACHE}{layer}.key"], first[f"{CACHE}{layer}.value"]) for layer in layers}

    def keep(self, begin: int) -> KeptTokens:
        """As States.keep."""
        rows = {name: cache[0, :, begin : self.length].copy() for name, cache in self._caches.items()}
        return {**rows, **(self._saved.get(self.length) or self.copies())}

    def _copy(self) -> dict[str, Floats]:
        return self.copies()

    def _restore(self, length: int) -> None:
        copies = self._saved.get(length, {})
        for name, state in self._recurrent.items():
            state[:] = copies.get(name, 0)

    def _adopt(self, parts: Sequence[tuple[int, KeptTokens]], positions: Ints, wanted: int, known: int) -> int:
        ends = [*(begin for begin, _ in parts[1:]), wanted]
        for (begin, kept), end in zip(parts, ends, strict=True):
            for name, cache in self._caches.items():
                rows, (_, heads, _, width) = kept[name], cache.shape
                if rows.dtype != cache.dtype or rows.shape[::2] != (heads, width) or rows.shape[1] < end - begin:
                    raise ValueError(f"{name} is {rows.dtype} {list(rows.shape)}")
                first = max(known, begin)
                if first < end:
                    cache[0, :, first:end] = rows[:, first - begin : end - begin]
        for name, state in self._recurrent.items():
            if parts[-1][1][name].shape != state.shape:
                raise ValueError(f"{name} is {list(parts[-1][1][name].shape)}")
            state[:] = parts[-1][1][name]
        return wanted


class OnnxDecoder(EngineDecoder[BoundStates]):
    """A graph of the ort dialect on the CPU."""

    kind = BoundStates

    def __init__(
        self,
        path: Path,
        *,
        capacity: int,
        threads: int | None = None,
        profile: bool = False,
        native: bool | None = None,
    ) -> None:
        super().__init__()
        self.path, self.capacity = path, capacity
        self._open = partial(session, path, threads, profile=profile, native=native)
        self._use(self._open())
        self.hidden = int(self._inputs["image_features"].shape[1])
        self.axes = tuple(self._inputs["position_ids"].shape[:-2])  # (3,) with M-RoPE, else ()
        self.vocab = int(self.session.get_outputs()[0].shape[2])
        deepstack = self._inputs.get("deepstack_features")
        self.taps = 0 if deepstack is None else int(deepstack.shape[0])
        self.recurrent = any(name.startswith(RECURRENT) for name in self._inputs)

    def _use(self, opened: ort.InferenceSession) -> None:
        self.session = opened
        self._inputs = {value.name: value for value in opened.get_inputs()}
        self._outputs = [value.name for value in opened.get_outputs()]

    def open_states(self) -> BoundStates:
        """Buffers of a new conversation."""
        return BoundStates(self._inputs.values(), self.capacity)

    def _compute(self, states: BoundStates, step: Step) -> Floats:
        if step.num_hidden_states and HIDDEN not in self._outputs and DRAFT_HIDDEN not in self._outputs:
            self._use(self._open(graph=with_hidden_states(self.path)))  # from now on they are given
        bound = self._bound(states, step)
        bound.arrays["input_ids"][0] = step.ids
        bound.arrays["position_ids"][:] = step.positions[:, None] if self.axes else step.positions[:1]
        bound.arrays["past_lengths"][0] = states.length
        if step.hidden_states is not None:
            bound.arrays["hidden_states"][0] = step.hidden_states
        with refusal_is_input(self.path):
            self.session.run_with_iobinding(bound.binding)
        if bound.hidden_states is not None:
            states.hidden_states = bound.hidden_states[0]
        logits: Floats = bound.logits[0]
        return logits

    def _bound(self, states: BoundStates, step: Step) -> BoundStep:
        num_hidden = max(step.num_logits, step.num_hidden_states)
        if len(step.ids) == num_hidden == step.num_logits == 1 and step.images is None:
            if states.single is None or states.single.session is not self.session:
                states.single = self._bind(states, 1, 1, 1, None)
            return states.single
        return self._bind(states, len(step.ids), step.num_logits, num_hidden, step.images)

    def _bind(
        self, states: BoundStates, tokens: int, num_logits: int, num_hidden: int, images: ImageFeatures | None
    ) -> BoundStep:
        arrays = self._arrays(tokens, num_logits, num_hidden, images)
        binding = self.session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        made = {
            "logits": np.empty((1, num_logits, self.vocab), np.float32),
            HIDDEN: np.empty((1, num_hidden, self.hidden), np.float32),
            DRAFT_HIDDEN: np.empty((1, num_logits, self.hidden), np.float32),
        }
        made = {name: array for name, array in made.items() if name in self._outputs}
        for name, array in made.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        states.bind(binding)
        return BoundStep(self.session, binding, arrays, made.pop("logits"), next(iter(made.values()), None))

    def _arrays(
        self, tokens: int, num_logits: int, num_hidden: int, images: ImageFeatures | None
    ) -> dict[str, NDArray[Any]]:
        """Inputs that the graph has, but for the states."""
        images = images or ImageFeatures(
            np.zeros((0, self.hidden), np.float32), np.zeros((self.taps, 0, self.hidden), np.float32)
        )
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros((1, tokens), np.int64),
            "position_ids": np.zeros((*self.axes, 1, tokens), np.int64),
            "past_lengths": np.zeros(1, np.int32),
            "num_logits": np.array([num_logits], np.int64),
            "num_hidden_states": np.array([num_hidden], np.int64),
            "hidden_states": np.zeros((1, tokens, self.hidden), np.float32),
            "image_features": images.features,
        }
        if images.deepstack is not None and self.taps:
            arrays["deepstack_features"] = np.ascontiguousarray(images.deepstack)
        return {name: array for name, array in arrays.items() if name in self._inputs}
