"""The grid of an item by indices that the runtime makes of it, so that no value decides a shape inside the graph.

Sizes in shapes: S patches of one image or clip, D hidden, M = merge_size**2 * D. The indices themselves are made in
runtimes/media/places.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graphs.dialect import Angles, Dialect
from ...graphs.graph_terms import Op, Port, Value
from .arlow_spec import ArlowSpec, Locality

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64


def index_ports(spec: ArlowSpec) -> dict[str, Port]:
    """The index inputs of an encoder: those of the features that it has."""
    ports: dict[str, Port] = {"patch_places": (F32, [3, "patches"]), "block_order": (I64, ["patches"])}
    if spec.conventions.patch_order == "windows":
        ports["raster_order"] = (I64, ["patches"])
    if spec.locality is not None:
        ports |= {"offset_bias": (F32, ["offsets"])}
        ports |= {f"{part}_offsets": (I64, ["patches"]) for part in ("query", "key")}
    if spec.progressive:
        ports |= {"cell_patches": (I64, [4, "cells"]), "near_cells": (I64, [4, "patches"])}
        ports |= {"near_shares": (F32, [4, "patches"])}
    return ports


@dataclass(frozen=True)
class IndexedGrid:
    """What `Grid` computes from sizes, looked up by the index inputs of `index_ports`."""

    index: Mapping[str, Value]
    dialect: Dialect

    def to_raster(self, op: Op, x: Value, merge: int) -> Value:
        """Rows [1, S, D] ordered by windows of merge x merge into raster order."""
        return op.Gather(x, self.index["raster_order"], axis=1)

    def group(self, op: Op, x: Value, merge: int, hidden: int) -> Value:
        """The patches of each block of merge x merge side by side: [1, S, D] to [S / merge**2, M]."""
        return op.Reshape(op.Gather(x, self.index["block_order"], axis=1), [-1, merge**2 * hidden])

    def patch_angles(self, op: Op, dialect: Dialect, spec: ArlowSpec) -> Angles:
        """Rotary angles of each patch: every frequency follows one axis of the grid."""
        half = np.arange(spec.head_dim // 2, dtype=np.float32) * np.float32(2) / np.float32(spec.head_dim)
        frequencies = (np.float32(1) / np.float32(spec.rope_theta) ** half).astype(np.float32)
        pick = np.zeros((3, 1, len(half)), np.float32)
        pick[spec.frequency_axes(), 0, np.arange(len(half))] = frequencies
        places = op.Unsqueeze(self.index["patch_places"], [2])
        # At most one of the products of an axis is not zero, so the sum is exact.
        angles = op.ReduceSum(op.Mul(places, op.initializer(ir.tensor(pick), name="frequencies")), [0], keepdims=0)
        cos, sin = (dialect.enter(op, turned) for turned in (op.Cos(angles), op.Sin(angles)))
        return Angles(cos, sin, op.Constant(value_ints=[0]))

    def locality_bias(self, op: Op, locality: Locality) -> Value:
        """What is added to the scores, [1, 1, S, S]: that of the offset of a key from a query."""
        keys, queries = (op.Unsqueeze(self.index[f"{part}_offsets"], [axis]) for axis, part in enumerate(PAIR))
        bias = op.Gather(self.dialect.enter(op, self.index["offset_bias"]), op.Sub(keys, queries), axis=0)
        return op.Unsqueeze(bias, [0, 1])

    def reach(self, op: Op, locality: Locality) -> None:
        """All keys are read."""

    def coarse(self, op: Op, x: Value, hidden: int) -> Value:
        """Progressive patches: [1, S, D] averaged over cells of 2 x 2, and interpolated linearly from the four nearest.

        Sums in float32, as the weights of four neighbours are no powers of two.
        """
        rows = op.Squeeze(self.dialect.leave(op, x), [0])
        cells = op.ReduceMean(op.Gather(rows, self.index["cell_patches"], axis=0), [0], keepdims=0)  # [S / 4, D]
        near = op.Gather(cells, self.index["near_cells"], axis=0)  # [4, S, D]
        total = op.ReduceSum(op.Mul(near, op.Unsqueeze(self.index["near_shares"], [2])), [0], keepdims=1)
        return self.dialect.enter(op, total)


PAIR = ("key", "query")
