"""Tensors of a GGUF file, read and stored a few rows at a time.

A tensor is stored as llama.cpp's converter stores it: matrices in the type of the file, everything else in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor

Floats = NDArray[np.float32]
BLOCK_ELEMENTS = 1 << 22  # of a block of rows: 16 MB of float32
SAMPLE_ELEMENTS = 1 << 17  # of the first block
LARGEST_F16 = 65504.0
# Always float32: the kernels of llama.cpp take nothing else.
FLOAT32_NAMES = ("_norm.weight", "ssm_conv1d.weight", "v.position_embd.weight")
FALLBACK = Type.F16  # where the rows do not fill the blocks of a quantized type


@dataclass(frozen=True)
class Tensor:
    """One tensor of a GGUF file: `shape` as numpy has it (llama.cpp prints it reversed), `rows` gives its values."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]  # names in the checkpoint
    rows: Callable[[], Iterator[Floats]]  # consecutive blocks of the first axis
    columns: NDArray[np.int64] | None = None  # where each column comes from; None: from its own place

    def type(self, wanted: Type) -> Type:
        """How the tensor is stored in a file of this type."""
        if "patch_embd.weight" in self.name:  # a convolution: llama.cpp has it for two types
            return Type.F16 if wanted == Type.F16 else Type.F32
        if len(self.shape) < 2 or self.name.endswith(FLOAT32_NAMES) or not self.name.endswith(".weight"):
            return Type.F32
        block = gguf.GGML_QUANT_SIZES[wanted][0]
        return wanted if self.shape[-1] % block == 0 else FALLBACK

    def nbytes(self, wanted: Type) -> int:
        """Bytes in a file of this type."""
        block, size = gguf.GGML_QUANT_SIZES[self.type(wanted)]
        return prod(self.shape) // block * size

    def data(self, wanted: Type) -> Iterator[bytes]:
        """The bytes in a file of this type; InputError for values that the type cannot hold."""
        stored = self.type(wanted)
        for block in self.rows():
            yield _encode(block, stored, self.name)


def _encode(block: Floats, stored: Type, name: str) -> bytes:
    # Float16 also holds the scales of blocks; NaN does not fit either.
    if stored in (Type.F16, Type.Q8_0) and not np.all(np.abs(block) <= LARGEST_F16):
        raise InputError(f"tensor {name!r} has values beyond float16's {LARGEST_F16:.0f}; use --precision bf16 or f32")
    encoded: NDArray[Any] = gguf.quants.quantize(np.ascontiguousarray(block), stored)
    return encoded.tobytes()


def plain(name: str, source: LazyTensor) -> Tensor:
    """A tensor as the checkpoint has it."""
    return mapped(name, source, lambda rows: rows)


def mapped(name: str, source: LazyTensor, change: Callable[[Floats], Floats]) -> Tensor:
    """A tensor whose rows change one by one, without losing any of them."""
    shape = change(np.zeros((1, *source.shape[1:]), np.float32)).shape
    return Tensor(name, (source.shape[0], *shape[1:]), (source.name,), lambda: _changed(source, change))


def whole(name: str, source: LazyTensor, change: Callable[[Floats], Floats]) -> Tensor:
    """A tensor whose values change places among the rows; it keeps its shape."""
    return Tensor(name, source.shape, (source.name,), lambda: iter([change(source.numpy())]))


def _changed(source: LazyTensor, change: Callable[[Floats], Floats]) -> Iterator[Floats]:
    """The first block is small, for those who want no more than a sample."""
    columns = max(1, prod(source.shape[1:]))
    stop = min(max(1, SAMPLE_ELEMENTS // columns), source.shape[0])
    yield change(source.rows(0, stop))
    step = max(1, BLOCK_ELEMENTS // columns)
    for start in range(stop, source.shape[0], step):
        yield change(source.rows(start, min(start + step, source.shape[0])))
