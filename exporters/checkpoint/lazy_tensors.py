"""What a tensor of a checkpoint is to the rest of lensmith: a name, a shape, and rows that are read when asked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.float32]
BLOCK = 4 * 1024 * 1024  # elements computed or converted at a time: keeps the memory of a read near its result

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32), "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}  # fmt: skip
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # of weights that need no scale


class LazyTensor(ABC):
    """A tensor whose values are read when asked. `dtype` is the safetensors name of what it holds ("BF16")."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in the files."""

    @abstractmethod
    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Rows `start` to `stop` of the first axis, reading only what they need; [stop - start, ...]."""

    @abstractmethod
    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The whole tensor converted to `dtype`; an InputError when a file has shrunk meanwhile."""

    @abstractmethod
    def renamed(self, name: str) -> LazyTensor:
        """The same tensor under another name."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def raw(self) -> NDArray[Any]:
        """The whole tensor without conversion (bfloat16 as `ml_dtypes.bfloat16`)."""
        return self.numpy(DTYPES[self.dtype])

    def check_rows(self, start: int, stop: int) -> None:
        """IndexError for rows that are not there."""
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}:{stop} of {self.name} with shape {list(self.shape)}")


@dataclass(frozen=True)
class ComputedTensor(LazyTensor):
    """A tensor that is computed from others, some rows at a time, in float32.

    `compute` gives the rows from one to another; their values fit into `dtype` without rounding.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[LazyTensor, ...]
    compute: Callable[[int, int], Floats]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def renamed(self, name: str) -> ComputedTensor:
        return replace(self, name=name)

    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        self.check_rows(start, stop)
        return self.compute(start, stop).reshape(stop - start, *self.shape[1:]).astype(dtype, copy=False)

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        out: NDArray[Any] = np.empty(self.shape, dtype)
        step = max(1, BLOCK // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            out[start:stop] = self.rows(start, stop, dtype)
        return out
