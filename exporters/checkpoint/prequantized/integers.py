"""Weights that a checkpoint stores as integers with scales for groups of inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage.packing import Bytes, unpack_low_first
from ..lazy_tensors import ComputedTensor, Floats, LazyTensor
from .modules import Module


@dataclass(frozen=True)
class Integers:
    """weight = (values - zeros) * scales, with unsigned values of `bits` and a scale and zero for groups of columns.

    Each function gives rows from one to another: values uint8 [rows, columns], scales float32 [rows, groups], zeros
    uint8 [rows, groups], None meaning 2^(bits - 1). `order` gives the group of each column where they are not
    consecutive groups of one size.
    """

    bits: int
    columns: int
    groups: int
    values: Callable[[int, int], Bytes]
    scales: Callable[[int, int], Floats]
    zeros: Callable[[int, int], Bytes] | None = None
    order: Callable[[], NDArray[np.int64] | None] = lambda: None

    @property
    def group_size(self) -> int:
        """Columns of a group; one group may be all of a row."""
        return self.columns // self.groups

    @property
    def middle(self) -> int:
        """The zero of symmetric integers."""
        return int(2 ** (self.bits - 1))

    def rows(self, start: int, stop: int) -> Floats:
        """The weights as float32: one rounding, that of the product, where the scale has more than 16 bits."""
        scales, order = self.scales(start, stop), self.order()
        zeros = np.full_like(scales, self.middle) if self.zeros is None else self.zeros(start, stop).astype(np.float32)
        values = self.values(start, stop).astype(np.float32)
        if order is not None:
            values -= zeros[:, order]
            values *= scales[:, order]
            return values
        grouped = values.reshape(stop - start, self.groups, self.group_size)
        grouped -= zeros[..., None]
        grouped *= scales[..., None]
        return values


@dataclass(frozen=True)
class IntegerTensor(ComputedTensor):
    """A tensor of such integers, which an export may keep as they are."""

    integers: Integers


def integer_tensor(module: Module, rows: int, made: Integers) -> IntegerTensor:
    """The weight [rows, columns] of a module."""
    parts: tuple[LazyTensor, ...] = tuple(module.parts.values())
    return IntegerTensor(module.weight_name, (rows, made.columns), "F32", parts, made.rows, made)


def unpack_words(words: NDArray[np.int32], bits: int, count: int) -> Bytes:
    """`count` unsigned integers from each row of int32 [rows, words], the first one in the lowest bits.

    Those that do not divide 32 go on in the next word.
    """
    packed = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits in (2, 4, 8):
        return unpack_low_first(packed, bits, count)
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : count * bits].reshape(len(packed), count, bits)
    weights = np.left_shift(1, np.arange(bits)).astype(np.uint8)
    return np.asarray(stream @ weights, np.uint8)


def words_for(count: int, bits: int) -> int:
    """Words of 32 bits that hold this many integers."""
    return -(-count * bits // 32)


def checked_order(module: Module, name: str, columns: int, groups: int) -> Callable[[], NDArray[np.int64] | None]:
    """What reads the group of each column from a part, if there is one; None where groups are consecutive."""
    part = module.parts.get(name)
    if part is None:
        return lambda: None
    module.check(part, columns)

    def order() -> NDArray[np.int64] | None:
        found = part.numpy(np.int64)
        if (found == -1).all() or np.array_equal(found, np.arange(columns) // (-(-columns // groups))):
            return None
        if found.min() < 0 or found.max() >= groups:
            raise module.refuse(f"{part.name} names groups from {found.min()} to {found.max()}, of {groups}")
        return found

    return order
