"""Integers of a checkpoint that go into a bundle as they are, without being rounded a second time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graphs.matrices import Matrix
from ...storage.rounding import Groups
from ..lazy_tensors import Floats, LazyTensor
from .integers import Integers, IntegerTensor

Rows = Callable[[int, int], list[NDArray[Any]]]
SIZES = (128, 64, 32)  # of groups that a bundle may have, the first by default


def own_groups(tensors: Iterable[LazyTensor], bits: int) -> tuple[int, bool] | None:
    """The largest group size, and whether without zero points, that holds all integers of `bits` as they are.

    None where there are none, or no size is right for all of them. Reads zero points.
    """
    found = [(t, t.integers) for t in tensors if isinstance(t, IntegerTensor) and t.integers.bits == bits]
    kept = [(tensor, made) for tensor, made in found if made.order() is None]
    size = next((size for size in SIZES if all(made.group_size % size == 0 for _, made in kept)), None)
    if not kept or size is None:
        return None
    points = (made.zeros(0, tensor.shape[0]) == made.middle for tensor, made in kept if made.zeros is not None)
    return size, all(bool(middle.all()) for middle in points)


def kept_rows(matrix: Matrix | None, tensor: LazyTensor) -> Rows | None:
    """What gives the stored form of rows from the tensor's own integers; None where the matrix cannot hold them."""
    if matrix is None or not isinstance(tensor, IntegerTensor) or misfit(matrix, tensor) is not None:
        return None
    return functools.partial(_stored_rows, matrix, tensor.integers)


def how_made(matrix: Matrix, tensor: LazyTensor) -> str:
    """What the manifest says of a matrix that was not calibrated."""
    if not isinstance(tensor, IntegerTensor):
        return "rounded to nearest"
    reason = misfit(matrix, tensor)
    if reason is None:
        return f"the checkpoint's own integers of {tensor.integers.bits} bits"
    return f"rounded to nearest from integers of {tensor.integers.bits} bits {reason}"


def misfit(matrix: Matrix, tensor: IntegerTensor) -> str | None:
    """Why a matrix cannot hold the integers of a tensor; None where it can. Reads scales and zero points."""
    scheme, made = matrix.scheme, tensor.integers
    if scheme.bits != made.bits or scheme.float8 or not matrix.holds_groups:
        return "that are stored in another way here"
    if made.order() is not None:
        return "in groups of scattered columns (act-order)"
    if made.group_size % scheme.group_size:
        return f"in groups of {made.group_size} (--group-size {made.group_size} may keep them)"
    rows = tensor.shape[0]
    if scheme.symmetric and made.zeros is not None and (made.zeros(0, rows) != made.middle).any():
        return "with zero points (--asymmetric keeps them)"
    scales = made.scales(0, rows)
    return None if np.array_equal(_halves(scales).astype(np.float32), scales) else "with scales that float16 has not"


def _stored_rows(matrix: Matrix, made: Integers, start: int, stop: int) -> list[NDArray[Any]]:
    """The stored form of some rows; a group of the checkpoint may be several of the bundle's."""
    repeats = made.group_size // matrix.scheme.group_size
    scales, zeros = _halves(made.scales(start, stop)), None
    if not matrix.scheme.symmetric:
        points = np.full(scales.shape, made.middle, np.uint8) if made.zeros is None else made.zeros(start, stop)
        zeros = np.repeat(points, repeats, axis=1)
    return matrix.store(Groups(made.values(start, stop), np.repeat(scales, repeats, axis=1), zeros, made.bits))


def _halves(scales: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return scales.astype(np.float16)
