"""Weights stored as floats of 8 bits: each times the scale of its block, row or tensor."""

from __future__ import annotations

import functools

import numpy as np

from ..lazy_tensors import ComputedTensor, Floats
from ..safetensors_files import StoredTensor
from .modules import Module

FLOATS8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("F32", "BF16", "F16", "F8_E8M0")
PARTS = ("weight_scale_inv", "weight_scale")  # the scale is multiplied whichever name it has


def scaled_floats(module: Module) -> ComputedTensor:
    """The weight of a module: float8 times scale, both widened to float32 first."""
    weight, scale = module.need("weight", dtypes=FLOATS8), module.need(*PARTS, dtypes=SCALES)
    if all(name in module.parts for name in PARTS):
        raise module.refuse(f"it has both {' and '.join(PARTS)}; expected one of them")
    settings = module.settings
    wanted = settings.get("weight_block_size") or settings.get("block_structure")
    sides = [side for side in wanted if type(side) is int and side > 0] if isinstance(wanted, list) else []
    block = block_of(module, weight, scale, (sides[0], sides[1]) if len(sides) == 2 else None)
    compute = functools.partial(_rows, weight, scale, block)
    return ComputedTensor(module.weight_name, weight.shape, "F32", tuple(module.parts.values()), compute)


def block_of(
    module: Module, weight: StoredTensor, scale: StoredTensor, wanted: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns that share a scale: as declared where that fits, else what the shapes imply."""
    if len(weight.shape) < 2:
        raise module.refuse(f"{weight.name} has shape {list(weight.shape)}, expected a matrix")
    rows, columns = weight.shape[0], weight.size // max(1, weight.shape[0])
    if scale.size == 1:
        return rows, columns
    grid = scale.shape if len(scale.shape) == 2 else (*scale.shape, 1)
    if wanted is not None and grid == (-(-rows // wanted[0]), -(-columns // wanted[1])):
        return wanted
    if len(grid) == 2 and min(grid) > 0 and not rows % grid[0] and not columns % grid[1]:
        return rows // grid[0], columns // grid[1]
    raise module.refuse(
        f"{scale.name} has shape {list(scale.shape)}, which cuts a weight of shape {list(weight.shape)} into no blocks"
    )


def expanded(scale: StoredTensor, block: tuple[int, int], start: int, stop: int, columns: int) -> Floats:
    """The scale of each value of some rows: float32 that broadcasts to [rows, columns]."""
    values = scale.numpy() if len(scale.shape) == 2 else scale.numpy().reshape(-1, 1)
    chosen: Floats = values[np.arange(start, stop) // block[0]]
    return chosen if chosen.shape[1] == 1 else np.repeat(chosen, block[1], axis=1)[:, :columns]


def _rows(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int], start: int, stop: int) -> Floats:
    values: Floats = weight.rows(start, stop).reshape(stop - start, -1)
    values *= expanded(scale, block, start, stop, values.shape[1])
    return values
