"""Engines of TensorRT on their GPU: one for each graph, with its states in device memory.

Caches are written where they lie: past and present are one buffer. Other states have two buffers that change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.errors import InputError, LensmithError
from .cuda import Buffer, Cuda
from .indexed import Arrays, present_name
from .states import CACHE, RECURRENT
from .tensorrt_library import load_library

# By TensorRT's name of a type; bfloat16 is carried as its bytes.
TYPES: Mapping[str, Any] = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT32": np.int32,
                            "INT64": np.int64, "BOOL": np.bool_}  # fmt: skip


class TensorRTExecutor:
    """An engine with a context for each of its profiles; see indexed.Executor.

    `entry` is what the manifest says about the graph. Raises InputError where there is no GPU, or another one than the
    engine was built for, and MissingExtra where TensorRT is not installed.
    """

    def __init__(self, path: Path, entry: Mapping[str, Any]) -> None:
        made = entry["engine"]
        self.inputs = {name: tuple(port["shape"]) for name, port in entry["inputs"].items()}
        self.outputs = {name: tuple(port["shape"]) for name, port in entry["outputs"].items()}
        self.profiles: list[dict[str, Any]] = made["profiles"]
        self._trt, self._cuda = load_library(made["flavour"]), Cuda()
        self._log = _logger(self._trt)
        self._engine = self._load(path, made)
        self._contexts = [self._context(index) for index in range(len(self.profiles))]
        self._buffers: dict[str, Buffer] = {}
        self._states = {name: self._cuda.buffer(self._nbytes(name)) for name in self.inputs
                        if name.startswith((CACHE, RECURRENT))}  # fmt: skip
        self._spare = {name: self._cuda.buffer(self._nbytes(name)) for name in self._states if not _aliased(name)}

    def _load(self, path: Path, made: Mapping[str, Any]) -> Any:
        self._runtime = self._trt.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise InputError(
                f"{path} cannot be loaded by {made['flavour']} {self._trt.__version__}: it was built with "
                f"{made['version']} for compute capabilities {', '.join(made['capabilities'])} "
                f"({self._log.last[:200]}); build it for this device"
            )
        return engine

    def _context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise LensmithError(f"TensorRT makes no context for profile {profile}: {self._log.last[:300]}")
        return context

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens. InputError for sizes beyond the profiles."""
        context = self._contexts[fitting(self.profiles, feed)]
        for name, values in feed.items():
            self._bind_input(context, name, values)
        for name, buffer in self._states.items():
            self._bind(context, name, buffer)
            self._bind(context, present_name(name), self._spare.get(name, buffer))
        wanted = [name for name in self.outputs if name not in map(present_name, self._states)]
        shapes = {name: self._bind_output(context, name) for name in wanted}
        if not context.execute_async_v3(self._cuda.stream):
            raise LensmithError(f"TensorRT cannot run the engine: {self._log.last[:300]}")
        made = {name: self._buffers[name].get(shape, self._type(name)) for name, shape in shapes.items()}
        for name in self._spare:
            self._states[name], self._spare[name] = self._spare[name], self._states[name]
        return made

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        return self._states[name].get(self._shape(name), self._type(name))

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        if values is None:
            self._states[name].clear()
        else:
            self._states[name].put(values)

    def _bind_input(self, context: Any, name: str, values: NDArray[Any]) -> None:
        typed = np.ascontiguousarray(values, self._type(name))
        buffer = self._buffer(name, typed.nbytes)
        buffer.put(typed)
        context.set_input_shape(name, typed.shape)
        self._bind(context, name, buffer)

    def _bind_output(self, context: Any, name: str) -> tuple[int, ...]:
        shape = tuple(context.get_tensor_shape(name))
        nbytes = prod(shape) * np.dtype(self._type(name)).itemsize
        self._bind(context, name, self._buffer(name, nbytes))
        return shape

    def _bind(self, context: Any, name: str, buffer: Buffer) -> None:
        if not context.set_tensor_address(name, buffer.pointer):
            raise LensmithError(f"the engine has no {name!r}: {self._log.last[:300]}")

    def _buffer(self, name: str, nbytes: int) -> Buffer:
        """The buffer of an input or output, at least as large as asked."""
        found = self._buffers.get(name)
        if found is None or found.nbytes < nbytes:
            found = self._buffers[name] = self._cuda.buffer(nbytes)
        return found

    def _type(self, name: str) -> Any:
        return TYPES[self._engine.get_tensor_dtype(name).name]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self.inputs[name])

    def _nbytes(self, name: str) -> int:
        itemsize: int = np.dtype(self._type(name)).itemsize
        return prod(self._shape(name)) * itemsize


def fitting(profiles: list[dict[str, Any]], feed: Arrays) -> int:
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


def _inside(shape: tuple[int, ...], bounds: list[list[int]]) -> bool:
    return all(low <= size <= high for size, low, high in zip(shape, bounds[0], bounds[2], strict=True))


def _aliased(name: str) -> bool:
    """Whether a state is written where it lies."""
    return name.startswith(CACHE)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "TensorRT gives no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.last = message

    return Logger()
