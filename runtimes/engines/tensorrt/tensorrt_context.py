"""One optimization profile of an engine: its context, its buffers, and what is bound to it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....targets.errors import LensmithError
from ..cuda.cuda import Buffer, Cuda


class BoundContext:
    """Runs an engine within one profile. `types` are those of numpy that carry its inputs and outputs, by name.

    Buffers are its own and grow to the largest sizes seen. Shapes and addresses are told to TensorRT only when they
    change: steps of one size go without, so that a recorded graph of kernels stays valid.
    """

    def __init__(self, context: Any, cuda: Cuda, types: Mapping[str, Any], log: Any) -> None:
        self._context, self._cuda, self._types, self._log = context, cuda, types, log
        self._buffers: dict[str, Buffer] = {}
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def put(self, name: str, values: NDArray[Any]) -> None:
        """Copy an input to the GPU, and bind it."""
        typed = np.ascontiguousarray(values, self._types[name])
        buffer = self._buffer(name, typed.nbytes)
        buffer.put(typed)
        if self._shapes.get(name) != typed.shape:
            self._context.set_input_shape(name, typed.shape)
            self._shapes[name] = typed.shape
        self.bind(name, buffer)

    def bind(self, name: str, buffer: Buffer) -> None:
        """Give the engine the buffer of an input or output."""
        if self._addresses.get(name) == buffer.pointer:
            return
        if not self._context.set_tensor_address(name, buffer.pointer):
            raise LensmithError(f"the engine has no {name!r}: {self._log.last[:300]}")
        self._addresses[name] = buffer.pointer

    def run(self, outputs: list[str]) -> dict[str, NDArray[Any]]:
        """Run with all that is bound; copies of the outputs."""
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in outputs}
        for name, shape in shapes.items():
            self.bind(name, self._buffer(name, prod(shape) * np.dtype(self._types[name]).itemsize))
        if not self._context.execute_async_v3(self._cuda.stream):
            raise LensmithError(f"TensorRT cannot run the engine: {self._log.last[:300]}")
        return {name: self._buffers[name].get(shape, self._types[name]) for name, shape in shapes.items()}

    def _buffer(self, name: str, nbytes: int) -> Buffer:
        """The buffer of an input or output, at least as large as asked."""
        found = self._buffers.get(name)
        if found is None or found.nbytes < nbytes:
            found = self._buffers[name] = self._cuda.buffer(nbytes)
        return found
