"""Graph description of the Qwen vision encoder: patches of any grid to image tokens, with DeepStack taps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from ..storage.scheme import Policy
from ..tower_specs import VisionSpec
from .blocks import LayerNorm, Linear
from .dialect import Angles, Dialect
from .graph_terms import Op, Port, Value
from .patch_blocks import PatchAttention, PatchProjection, ResidualBlock


class AxialSpec(Protocol):
    """What 2-D rotary angles follow from."""

    @property
    def head_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...


@dataclass(frozen=True)
class GridSizes:
    """Sizes read from image_grid_thw at run time, int64 [1] each, and the row and column of each patch of a frame.

    Patches come in the order of the image processor: merge blocks in raster order, patches in raster order inside.
    """

    frames: Value | None  # None: one, and no value decides a shape
    height: Value
    width: Value
    rows: Value  # int64 [height * width]
    columns: Value  # int64 [height * width]

    def by_frame(self, op: Op, x: Value) -> Value:
        """Patches [frames * height * width, hidden] as [frames, height * width, hidden]."""
        if self.frames is None:
            return op.Unsqueeze(x, [0])
        return op.Reshape(x, op.Concat(self.frames, op.Mul(self.height, self.width), [-1], axis=0))


INDEX_PORTS: Mapping[str, Port] = {"patch_rows": (ir.DataType.INT64, ["patches"]),
                                   "patch_columns": (ir.DataType.INT64, ["patches"])}  # fmt: skip


def given_grid(op: Op, grid_thw: Value, places: Mapping[str, Value]) -> GridSizes:
    """The grid of one frame, whose patches come with their rows and columns."""
    height, width = (op.Reshape(op.Slice(grid_thw, [axis], [axis + 1], [1]), [1]) for axis in (1, 2))
    return GridSizes(None, height, width, places["patch_rows"], places["patch_columns"])


def read_grid(op: Op, grid_thw: Value, merge: int) -> GridSizes:
    """The grid of equal images, from image_grid_thw int64 [images, 3]."""
    height = op.Slice(op.Slice(grid_thw, [0], [1], [0]), [1], [2], [1])
    width = op.Slice(op.Slice(grid_thw, [0], [1], [0]), [2], [3], [1])
    frames = op.ReduceSum(op.Slice(grid_thw, [0], [1], [1]), [0, 1], keepdims=0)
    height, width, frames = (op.Reshape(x, [1]) for x in (height, width, frames))
    shape = op.Concat(height, width, axis=0)
    blocks = op.Concat(op.Div(height, [merge]), [merge], op.Div(width, [merge]), [merge], axis=0)

    def in_patch_order(index: Value, axis: int) -> Value:
        table = op.Expand(op.Unsqueeze(index, [axis]), shape)
        return op.Reshape(op.Transpose(op.Reshape(table, blocks), perm=[0, 2, 1, 3]), [-1])

    rows, columns = (op.Range(0, op.Squeeze(x, [0]), 1) for x in (height, width))
    return GridSizes(frames, height, width, in_patch_order(rows, 1), in_patch_order(columns, 0))


def patch_angles(op: Op, dialect: Dialect, grid: GridSizes, spec: AxialSpec) -> Angles:
    """2-D rotary angles of one frame: the first quarter of a head turns with the row, the second with the column."""
    quarter = spec.head_dim // 2
    inverse = 1.0 / spec.rope_theta ** (np.arange(0, quarter, 2, dtype=np.float32) / np.float32(quarter))
    frequencies = op.initializer(ir.tensor(inverse.astype(np.float32)[None]), name="inverse_frequencies")

    def turns(index: Value) -> Value:
        return op.Mul(op.Unsqueeze(op.Cast(index, to=ir.DataType.FLOAT), [1]), frequencies)

    angles = op.Concat(turns(grid.rows), turns(grid.columns), axis=-1)
    cos, sin = (dialect.enter(op, turned) for turned in (op.Cos(angles), op.Sin(angles)))
    return Angles(cos, sin, op.Constant(value_ints=[0]))


class PositionTable(nn.Module):
    """The learned square position table, resampled bilinearly (corners aligned) to the grid of an image."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.side = round(spec.positions**0.5)
        self.weight = nn.Parameter([spec.positions, spec.hidden])

    def forward(self, op: Op, grid: GridSizes) -> Value:
        """Position embeddings of one frame, float32 [height * width, hidden]."""
        total = None
        for row, row_weight in self._taps(op, grid.rows, grid.height):
            for column, column_weight in self._taps(op, grid.columns, grid.width):
                entry = op.Gather(self.weight, op.Add(op.Mul(row, [self.side]), column), axis=0)
                part = op.Mul(entry, op.Unsqueeze(op.Mul(row_weight, column_weight), [1]))
                total = part if total is None else op.Add(total, part)
        return total

    def _taps(self, op: Op, index: Value, size: Value) -> list[tuple[Value, Value]]:
        """The two neighbours along one axis and their weights, for each patch."""
        last = op.Cast(op.Max(op.Sub(size, [1]), [1]), to=ir.DataType.FLOAT)
        place = op.Div(op.Mul(op.Cast(index, to=ir.DataType.FLOAT), [float(self.side - 1)]), last)
        low = op.Floor(place)
        weight = op.Sub(place, low)
        low = op.Cast(low, to=ir.DataType.INT64)
        high = op.Min(op.Add(low, [1]), [self.side - 1])
        return [(low, op.Sub([1.0], weight)), (high, weight)]


class PatchMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dialect: Dialect, sizes: tuple[int, int, int], policy: Policy, *, role: str, act: str) -> None:
        super().__init__()
        self.dialect, self.act = dialect, act
        self.linear_fc1 = Linear(dialect, sizes[0], sizes[1], policy.scheme(f"{role}.fc1", sizes[0]), bias=True)
        self.linear_fc2 = Linear(dialect, sizes[1], sizes[2], policy.scheme(f"{role}.fc2", sizes[1]), bias=True)

    def forward(self, op: Op, x: Value) -> Value:
        return self.linear_fc2(op, self.dialect.activation(op, self.linear_fc1(op, x), self.act))


class DeepStackMerger(PatchMLP):
    """Merges each block of patches into one image token; DeepStack's mergers normalize after the merge."""

    def __init__(self, dialect: Dialect, spec: VisionSpec, policy: Policy, *, norm_after: bool) -> None:
        sizes = (spec.merged_hidden, spec.merged_hidden, spec.out_hidden)
        role = "deepstack" if norm_after else "merger"
        super().__init__(dialect, sizes, policy, role=role, act="gelu")
        self.merged, self.norm_after = spec.merged_hidden, norm_after
        self.norm = LayerNorm(dialect, spec.merged_hidden if norm_after else spec.hidden, spec.norm_eps)

    def forward(self, op: Op, x: Value) -> Value:
        if self.norm_after:
            return super().forward(op, self.norm(op, op.Reshape(x, [-1, self.merged]))[0])
        return super().forward(op, op.Reshape(self.norm(op, x)[0], [-1, self.merged]))


class VisionEncoder(nn.Module):
    """pixel_values [patches, patch_dim] and image_grid_thw [images, 3] to image tokens, for images of one size."""

    def __init__(self, dialect: Dialect, spec: VisionSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        self.patch_embed = PatchProjection(dialect, spec, policy, bias=True)
        self.pos_embed = PositionTable(spec)
        self.blocks = nn.ModuleList([self._block(policy) for _ in range(spec.depth)])
        self.merger = DeepStackMerger(dialect, spec, policy, norm_after=False)
        taps: list[nn.Module] = [DeepStackMerger(dialect, spec, policy, norm_after=True) for _ in spec.deepstack_layers]
        self.deepstack_merger_list = nn.ModuleList(taps)

    def _block(self, policy: Policy) -> ResidualBlock:
        dialect, spec = self.dialect, self.spec
        sizes = (spec.hidden, spec.intermediate, spec.hidden)
        norms = LayerNorm(dialect, spec.hidden, spec.norm_eps), LayerNorm(dialect, spec.hidden, spec.norm_eps)
        mlp = PatchMLP(dialect, sizes, policy, role="vision", act=spec.activation)
        return ResidualBlock(norms, PatchAttention(dialect, spec, policy), mlp)

    def forward(
        self, op: Op, pixel_values: Value, grid_thw: Value, places: Mapping[str, Value]
    ) -> tuple[Value, Value | None]:
        """image_features [tokens, out_hidden] and deepstack_features [taps, tokens, out_hidden] or None.

        `places` are the inputs of INDEX_PORTS, in dialects that want them.
        """
        dialect = self.dialect
        grid = given_grid(op, grid_thw, places) if places else read_grid(op, grid_thw, self.spec.merge_size)
        angles = patch_angles(op, dialect, grid, self.spec)
        stream = grid.by_frame(op, self.patch_embed(op, dialect.enter(op, pixel_values)))
        delta: Value | None = op.Expand(dialect.enter(op, self.pos_embed(op, grid)), op.Shape(stream))
        taps = []
        for index, block in enumerate(self.blocks):
            stream, delta = block(op, stream, delta, angles)
            if index in self.spec.deepstack_layers:
                stream, delta = op.Add(stream, delta), None
                taps.append(self.deepstack_merger_list[self.spec.deepstack_layers.index(index)](op, stream))
        features = dialect.leave(op, self.merger(op, stream if delta is None else op.Add(stream, delta)))
        joined = op.Concat(*(op.Unsqueeze(t, [0]) for t in taps), axis=0) if taps else None
        return features, None if joined is None else dialect.leave(op, joined)
