"""Engines of TensorRT on their GPU: one for each graph, with its states in device memory.

Each conversation has its own states. Caches are written where they lie: past and present are one buffer. Other states
are made beside the old ones and copied over them, so that a step for one token has the same addresses each time and can
be replayed as one CUDA graph, as long as one conversation goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ....targets.errors import InputError, LensmithError
from ...bundle.graph_entries import GraphEntry, Profile
from ..contract import Arrays
from ..cuda.cuda import Buffer, Cuda
from ..indexed import present_name
from ..states import CACHE, RECURRENT
from .tensorrt_context import BoundContext
from .tensorrt_library import load_library

# By TensorRT's name of a type; bfloat16 is carried as its bytes.
TYPES: Mapping[str, Any] = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT32": np.int32,
                            "INT64": np.int64, "BOOL": np.bool_}  # fmt: skip


class GpuStates:
    """Buffers of one conversation with their shapes and types; see indexed.Kept."""

    def __init__(self, buffers: Mapping[str, Buffer], kinds: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        self.buffers, self._kinds = buffers, kinds

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        return self.buffers[name].get(*self._kinds[name])

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        if values is None:
            self.buffers[name].clear()
        else:
            self.buffers[name].put(values)


class TensorRTExecutor:
    """An engine with a context for each of its profiles; see indexed.Executor.

    `entry` is what the manifest says about the graph. Raises InputError where there is no GPU, or another one than the
    engine was built for, and MissingExtra where TensorRT is not installed.
    """

    def __init__(self, path: Path, entry: GraphEntry) -> None:
        made = entry.engine
        assert made is not UNSET
        self.inputs = {name: tuple(port.shape) for name, port in entry.inputs.items()}
        self.outputs = {name: tuple(port.shape) for name, port in entry.outputs.items()}
        self.profiles = made.profiles
        self._recordable = made.kernels is None or made.kernels.recordable
        self._trt, self._cuda = load_library(made.flavour), Cuda()
        self._log = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise InputError(
                f"{path} cannot be loaded by {made.flavour} {self._trt.__version__}: it was built with "
                f"{made.version} for compute capabilities {', '.join(made.capabilities)} "
                f"({self._log.last[:200]}); build it for this device"
            )
        self._engine = engine
        self._types = {name: TYPES[self._engine.get_tensor_dtype(name).name] for name in (*self.inputs, *self.outputs)}
        self._contexts = [self._context(index) for index in range(len(self.profiles))]
        self._states = [name for name in self.inputs if name.startswith((CACHE, RECURRENT))]
        moved = (name for name in self._states if not name.startswith(CACHE))  # the others are written where they lie
        self._made = {name: self._cuda.buffer(self._nbytes(name)) for name in moved}

    def open_states(self) -> GpuStates:
        """States of a new conversation, all zeros, in the GPU's memory."""
        buffers = {name: self._cuda.buffer(self._nbytes(name)) for name in self._states}
        return GpuStates(buffers, {name: (self._shape(name), self._types[name]) for name in self._states})

    def _context(self, profile: int) -> BoundContext:
        single = len(self.profiles) > 1 and fixed(self.profiles[profile])
        config = self._runtime_config(recorded=single and self._recordable)
        context = self._engine.create_execution_context(*([] if config is None else [config]))
        if context is None or not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise LensmithError(f"TensorRT makes no context for profile {profile}: {self._log.last[:300]}")
        return BoundContext(context, self._cuda, self._types, self._log)

    def _runtime_config(self, *, recorded: bool) -> Any:
        """One that has TensorRT-RTX record steps of one size as a CUDA graph; None where there is no such thing."""
        if not recorded or not hasattr(self._trt, "CudaGraphStrategy"):
            return None
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return config

    def run(self, feed: Arrays, kept: GpuStates) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens. InputError for sizes beyond the profiles."""
        context = self._contexts[fitting(self.profiles, feed)]
        for name, values in feed.items():
            context.put(name, values)
        for name, buffer in kept.buffers.items():
            context.bind(name, buffer)
            context.bind(present_name(name), self._made.get(name, buffer))
        made = context.run([name for name in self.outputs if name not in map(present_name, self._states)])
        for name, buffer in self._made.items():
            kept.buffers[name].copy(buffer)
        return made

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self.inputs[name])

    def _nbytes(self, name: str) -> int:
        itemsize: int = np.dtype(self._types[name]).itemsize
        return prod(self._shape(name)) * itemsize


def fitting(profiles: Sequence[Profile], feed: Arrays) -> int:
    """The last profile that takes the shapes of the inputs: that for single tokens, where they are.

    InputError with the input that the first one does not take.
    """
    refused = ""
    for index in reversed(range(len(profiles))):
        refused = next((name for name, values in feed.items() if not _inside(values.shape, profiles[index][name])), "")
        if not refused:
            return index
    least, _, largest = profiles[0][refused]
    raise InputError(
        f"the engine takes {refused} from {least} to {largest}, found {list(feed[refused].shape)}; "
        "give it smaller images or chunks, or export with larger limits"
    )


def fixed(profile: Profile) -> bool:
    """Whether a profile is for inputs of one size."""
    return all(least == largest for least, _, largest in profile.values())


def _inside(shape: tuple[int, ...], bounds: list[list[int]]) -> bool:
    if len(shape) != len(bounds[0]):
        return False
    return all(low <= size <= high for size, low, high in zip(shape, bounds[0], bounds[2], strict=True))


def _logger(trt: Any) -> Any:
    class EngineLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "TensorRT gives no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.last = message

    return EngineLogger()
