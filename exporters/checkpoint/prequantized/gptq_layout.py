"""GPTQ as AutoGPTQ and GPTQModel store it: integers of inputs in words, one column of words for each output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...storage.packing import Bytes
from ..lazy_tensors import Floats
from .integers import (
    Integers,
    IntegerTensor,
    checked_order,
    integer_tensor,
    unpack_words,
    words_for,
)
from .modules import Module

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
FORMATS = {"": 1, "gptq": 1, "gptq_v2": 0}  # what is added to stored zero points
# 1 for each zero point of a word: GPTQModel subtracts it from whole words, so that 0 borrows from the next one up.
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def gptq(module: Module) -> IntegerTensor:
    """The weight of a module; zero points of the first version are stored less 1."""
    settings = module.settings
    stored_as = str(settings.get("checkpoint_format") or settings.get("format") or "").lower()
    if stored_as not in FORMATS or settings.get("is_marlin_format"):
        raise module.refuse(f"GPTQ weights in the layout {stored_as or 'marlin'!r} are not supported; expected gptq or "
                            "gptq_v2: save the checkpoint so with GPTQModel")  # fmt: skip
    qweight, scales = module.need("qweight", rank=2, dtypes=("I32",)), module.need("scales", rank=2)
    qzeros, groups, rows = module.need("qzeros", rank=2, dtypes=("I32",)), *scales.shape
    bits, columns = _bits(module, qweight.shape[0] * 32)
    module.check(qweight, words_for(columns, bits), rows)
    module.check(qzeros, groups, words_for(rows, bits))
    order = checked_order(module, "g_idx", columns, groups)
    if not groups or columns % groups:
        raise module.refuse(f"{groups} groups do not divide {columns} inputs")
    plus = FORMATS[stored_as]

    def values(start: int, stop: int) -> Bytes:
        return unpack_words(qweight.columns(start, stop).T, bits, columns)

    def grid(start: int, stop: int) -> Floats:
        return np.ascontiguousarray(scales.columns(start, stop).T).astype(np.float32)

    def zeros(start: int, stop: int) -> Bytes:
        unpacked = _zero_points(qzeros.raw(), bits, rows, plus)
        return np.ascontiguousarray(unpacked[:, start:stop].T)

    return integer_tensor(module, rows, Integers(bits, columns, groups, values, grid, zeros, order))


def _bits(module: Module, stored: int) -> tuple[int, int]:
    """Bits of a weight and its inputs, from how many bits each output takes; `dynamic` has bits of single modules."""
    order, bits = module.parts.get("g_idx"), module.settings.get("bits")
    if module.settings.get("dynamic") and order is not None and order.size:
        bits = stored // order.size
    if type(bits) is not int or bits not in BITS:
        raise module.refuse(f"GPTQ weights of {str(bits)[:50]} bits are not supported; expected one of 2, 3, 4, 8")
    return bits, stored // bits if order is None else order.size


def _zero_points(words: NDArray[np.int32], bits: int, count: int, plus: int) -> Bytes:
    if bits in ONES:
        words = (words.view(np.uint32) + np.uint32(plus * ONES[bits])).view(np.int32)
        return unpack_words(words, bits, count)
    return unpack_words(words, bits, count) + np.uint8(plus) & np.uint8(2**bits - 1)
