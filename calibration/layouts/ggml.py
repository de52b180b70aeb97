"""Weights as llama.cpp's blocks of 32: Q4_0, Q4_1 and Q8_0 (the structures in ggml-common.h)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..packing import Bytes
from ..rounding import Groups

BLOCK = 32  # values


def ggml_type(groups: Groups) -> str:
    """The name of the type that stands for these groups; ValueError where there is none."""
    size = groups.values.shape[1] // groups.scales.shape[1]
    names = {(4, True): "Q4_0", (4, False): "Q4_1", (8, True): "Q8_0"}
    key = groups.bits, groups.zero_points is None
    if size % BLOCK or key not in names:
        kind = "symmetric" if key[1] else "asymmetric"
        raise ValueError(f"llama.cpp has no blocks for {kind} groups of {size} values of {groups.bits} bits")
    return names[key]


def ggml_blocks(groups: Groups) -> Bytes:
    """The blocks uint8 [rows, bytes] of groups of 32 or a multiple; larger groups repeat their scales.

    Q4_0 and Q8_0 stand for the same weights to the last bit. Q4_1 has a minimum in float16 in place of the zero point:
    it moves a block by at most half a step of float16 (2^-11 of the minimum). Raises ValueError as `ggml_type` does.
    """
    kind, rows = ggml_type(groups), len(groups.values)
    blocks = groups.values.reshape(rows, -1, BLOCK)
    repeats = blocks.shape[1] // groups.scales.shape[1]
    parts = [_as_bytes(groups.scales.repeat(repeats, axis=1))]
    if groups.zero_points is not None:
        minima = -groups.zero_points.astype(np.float32) * groups.scales.astype(np.float32)
        parts.append(_as_bytes(minima.astype(np.float16).repeat(repeats, axis=1)))
    values = blocks ^ np.uint8(0x80) if kind == "Q8_0" else blocks[..., :16] | blocks[..., 16:] << 4
    return np.concatenate([*parts, values], axis=2).reshape(rows, -1)


def _as_bytes(values: NDArray[np.float16]) -> Bytes:
    """Float16 [rows, blocks] as uint8 [rows, blocks, 2], the low byte first."""
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8).reshape(*values.shape, 2)
