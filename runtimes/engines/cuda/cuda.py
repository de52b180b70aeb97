"""Memory of an NVIDIA GPU through cuda-bindings: buffers, copies and a stream."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....targets.errors import InputError, LensmithError, MissingExtra


class Cuda:
    """The first GPU and one stream on it. Raises MissingExtra, and InputError where there is no GPU or no driver."""

    def __init__(self) -> None:
        try:
            self._api: Any = importlib.import_module("cuda.bindings.runtime")
        except ModuleNotFoundError as error:
            raise MissingExtra(f"running engines (no module {error.name!r})", "tensorrt") from error
        status, count = self._api.cudaGetDeviceCount()
        if status != self._api.cudaError_t.cudaSuccess or not count:
            raise InputError(
                f"engines need an NVIDIA GPU, and CUDA finds none ({self._words(status)}); run the bundle on its "
                "device, or export it with --format onnx for this machine"
            )
        self.stream = int(self._call("cudaStreamCreate"))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its value. LensmithError with CUDA's words where it fails."""
        status, *values = getattr(self._api, name)(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            raise LensmithError(f"{name} fails: {self._words(status)}")
        return values[0] if values else None

    def _words(self, status: Any) -> str:
        return str(self._api.cudaGetErrorString(status)[1].decode())

    def buffer(self, nbytes: int) -> Buffer:
        """Zeros on the GPU."""
        return Buffer(self, nbytes)

    def synchronize(self) -> None:
        """Wait for all that was asked of the stream."""
        self._call("cudaStreamSynchronize", self.stream)


class Buffer:
    """Bytes on the GPU, set to zero, and freed with the object."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda, self.nbytes = cuda, max(nbytes, 1)
        self.pointer = int(cuda._call("cudaMalloc", self.nbytes))
        self.clear()

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self._cuda._api.cudaFree(self.pointer)

    def clear(self) -> None:
        """Set all bytes to zero."""
        self._cuda._call("cudaMemsetAsync", self.pointer, 0, self.nbytes, self._cuda.stream)

    def put(self, values: NDArray[Any]) -> None:
        """Copy an array to the beginning; the array may be used again at once."""
        values = np.ascontiguousarray(values)
        self._copy(self.pointer, values.ctypes.data, values.nbytes, "cudaMemcpyHostToDevice")

    def copy(self, other: Buffer) -> None:
        """Take the bytes of another buffer of the same size, behind all that was asked of the stream before."""
        kind = self._cuda._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda._call("cudaMemcpyAsync", self.pointer, other.pointer, other.nbytes, kind, self._cuda.stream)

    def get(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A copy of the beginning as an array."""
        values = np.empty(shape, dtype)
        self._copy(values.ctypes.data, self.pointer, values.nbytes, "cudaMemcpyDeviceToHost")
        return values

    def _copy(self, to: int, source: int, nbytes: int, kind: str) -> None:
        if nbytes:
            api = self._cuda._api
            self._cuda._call(
                "cudaMemcpyAsync", to, source, nbytes, getattr(api.cudaMemcpyKind, kind), self._cuda.stream
            )
            self._cuda.synchronize()
