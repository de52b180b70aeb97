"""A GPU and TensorRT made of host memory and ONNX Runtime, so that what surrounds an engine is tested without either.

An "engine" is a file with the path of its graph. What it proves is the traffic: buffers, addresses, profiles, states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

NAMES = {"tensor(float)": ("FLOAT", np.float32), "tensor(int64)": ("INT64", np.int64),
         "tensor(int32)": ("INT32", np.int32)}  # fmt: skip


PENDING: list[Callable[[], Any]] = []  # what was asked of the stream and is not done yet


def catch_up() -> None:
    """Do what is pending, in its order: as late as a GPU may."""
    while PENDING:
        PENDING.pop(0)()


class HostCuda:
    """The functions of cuda.bindings.runtime that lensmith calls, over host memory."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 7

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        catch_up()
        return (0,)

    def cudaMalloc(self, nbytes: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)  # not zeros, as on a GPU
        self.held[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def cudaFree(self, pointer: int) -> tuple[int]:
        catch_up()
        del self.held[pointer]
        return (0,)

    def cudaMemsetAsync(self, pointer: int, value: int, nbytes: int, stream: int) -> tuple[int]:
        assert nbytes <= len(self.held[pointer])
        PENDING.append(lambda: ctypes.memset(pointer, value, nbytes))
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[int]:
        ends = {1: [to], 2: [source], 3: [to, source]}[kind]
        assert all(nbytes <= len(self.held[end]) for end in ends)
        PENDING.append(lambda: ctypes.memmove(to, source, nbytes))
        return (0,)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"no error"


class HostTensorRT:
    """The module `tensorrt_rtx` as far as lensmith's runtime calls it."""

    __version__ = "fake"
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")

    class ILogger:
        WARNING = 2

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, log: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            return None if data == b"broken" else Engine(data.decode())


class Engine:
    def __init__(self, path: str) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.types = {port.name: NAMES[port.type] for port in ports}
        self.shapes = {port.name: port.shape for port in ports}

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.types[name][0])

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, *configs: Any) -> Any:
        return Context(self, *(config.cuda_graph_strategy for config in configs))


class Context:
    def __init__(self, engine: Engine, recorded: str | None = None) -> None:
        self.engine, self.recorded, self.profile = engine, recorded, -1
        self.steps: list[list[str]] = []
        self.told: list[str] = []  # names of what was given an address or a shape since the last step
        self.addresses: dict[str, int] = {}
        self.given: dict[str, tuple[int, ...]] = {}
        self.made: dict[str, Any] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.given[name] = tuple(shape)
        self.made = {}
        self.told.append(name)
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        self.told.append(name)
        return name in self.engine.types

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._outputs()[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        for name, values in self._outputs().items():
            values = np.ascontiguousarray(values)
            ctypes.memmove(self.addresses[name], values.ctypes.data, values.nbytes)
        self.steps.append(self.told)
        self.made, self.told = {}, []
        return True

    def _outputs(self) -> dict[str, Any]:
        catch_up()
        if not self.made:
            feed = {port.name: self._array(port.name) for port in self.engine.session.get_inputs()}
            names = [port.name for port in self.engine.session.get_outputs()]
            self.made = dict(zip(names, self.engine.session.run(names, feed), strict=True))
        return self.made

    def _array(self, name: str) -> Any:
        shape = self.given.get(name) or tuple(self.engine.shapes[name])
        dtype = np.dtype(self.engine.types[name][1])
        raw = ctypes.string_at(self.addresses[name], prod(shape) * dtype.itemsize)
        return np.frombuffer(raw, dtype).reshape(shape)
