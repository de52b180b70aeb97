"""What follows from the grid of an item: order and grouping of patches, rotary angles, the bias of attention.

Sizes in shapes: S patches of one image or clip, D hidden, M = merge_size**2 * D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graphs.dialect import Angles, Dialect
from ...graphs.graph_terms import Op, Value
from .arlow_spec import ArlowSpec, Locality

F32, F64, I64 = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64
# Beyond the radius the default bias is below -400. From -200 on, softmax in float32 leaves such a key no weight as long
# as scores differ by less than 96: keys out of reach need not be read at all.
CERTAIN = -200.0
ROUNDING = 1e-12  # of float64: pairs exactly on the radius are inside


@dataclass(frozen=True)
class ArlowGrid:
    """Sizes of one image or clip in patches, read at run time, int64 [1] each."""

    frames: Value
    height: Value
    width: Value

    @property
    def sizes(self) -> tuple[Value, Value, Value]:
        return self.frames, self.height, self.width

    def to_raster(self, op: Op, x: Value, merge: int) -> Value:
        """Rows [1, S, D] ordered by windows of merge x merge into raster order."""
        height, width = (op.Div(size, [merge]) for size in (self.height, self.width))
        cells = op.Reshape(x, op.Concat(self.frames, height, width, [merge], [merge], [-1], axis=0))
        return op.Reshape(op.Transpose(cells, perm=[0, 1, 3, 2, 4, 5]), op.Shape(x))

    def group(self, op: Op, x: Value, merge: int, hidden: int) -> Value:
        """The patches of each block of merge x merge side by side: [1, S, D] to [S / merge**2, M]."""
        height, width = (op.Div(size, [merge]) for size in (self.height, self.width))
        cells = op.Reshape(x, op.Concat(self.frames, height, [merge], width, [merge, hidden], axis=0))
        return op.Reshape(op.Transpose(cells, perm=[0, 1, 3, 2, 4, 5]), [-1, merge**2 * hidden])

    def patch_angles(self, op: Op, dialect: Dialect, spec: ArlowSpec) -> Angles:
        """Rotary angles of each patch: every frequency follows one axis of the grid."""
        half = np.arange(spec.head_dim // 2, dtype=np.float32) * np.float32(2) / np.float32(spec.head_dim)
        frequencies = (np.float32(1) / np.float32(spec.rope_theta) ** half).astype(np.float32)
        axes = np.array(spec.frequency_axes())
        shape = op.Concat(*self.sizes, [len(axes)], axis=0)
        total = None
        for axis, size in enumerate(self.sizes):
            chosen = op.initializer(ir.tensor(frequencies * (axes == axis)), name=f"frequencies_{axis}")
            place = op.Cast(op.Range(0, op.Squeeze(size, [0]), 1), to=F32)
            column = op.Reshape(place, [-1] + [1] * (3 - axis))
            total = op.Mul(column, chosen) if total is None else op.Add(total, op.Mul(column, chosen))
        angles = op.Reshape(op.Expand(total, shape), [-1, len(axes)])
        cos, sin = (dialect.enter(op, turned) for turned in (op.Cos(angles), op.Sin(angles)))
        return Angles(cos, sin, op.Constant(value_ints=[0]))

    def locality_bias(self, op: Op, locality: Locality) -> Value:
        """What is added to the scores, float32 [1, 1, S, S].

        It depends on the offset between two patches alone, so it is computed once for each offset, in float64, and then
        looked up: the comparison with the radius is exact, and nothing of the size of S x S is computed.
        """
        bias = _offset_bias(op, self, locality)
        for axis, size in enumerate(self.sizes):
            place = op.Range(0, op.Squeeze(size, [0]), 1)
            offset = op.Sub(op.Unsqueeze(place, [0]), op.Unsqueeze(place, [1]))  # of a key from a query: [query, key]
            bias = op.Gather(bias, op.Add(offset, op.Sub(size, [1])), axis=2 * axis)
        tokens = op.Mul(op.Mul(self.frames, self.height), self.width)
        square = op.Concat([1, 1], tokens, tokens, axis=0)
        return op.Reshape(op.Transpose(bias, perm=[0, 2, 4, 1, 3, 5]), square)

    def reach(self, op: Op, locality: Locality) -> Value | None:
        """How many patches before and behind a query may have a weight, int64 [1]; None where all of them may."""
        if locality.outside > CERTAIN:
            return None
        far = []
        for size in (self.frames, self.height):
            extent = op.Cast(op.Sub(size, [1]), to=F64)
            steps = op.Floor(op.Mul(extent, _double(op, locality.radius * (1 + ROUNDING))))
            far.append(op.Cast(steps, to=I64))
        rows = op.Add(op.Add(op.Mul(far[0], self.height), far[1]), [1])  # and the rest of the first and last row
        return op.Mul(rows, self.width)

    def coarse(self, op: Op, x: Value, hidden: int) -> Value:
        """Progressive patches: [1, S, D] averaged over blocks of 2 x 2 and interpolated linearly back, frame by frame.

        Upsampling by two with half-pixel centres is 3/4 of the own cell and 1/4 of the neighbour on the patch's side.
        """
        height, width = (op.Div(size, [2]) for size in (self.height, self.width))
        cells = op.Reshape(x, op.Concat(self.frames, height, [2], width, [2, hidden], axis=0))
        mean = op.ReduceMean(cells, [2, 4], keepdims=0)  # [frames, height / 2, width / 2, D]
        return op.Reshape(_double_along(op, _double_along(op, mean, 1), 2), op.Shape(x))


def read_grid(op: Op, grid_thw: Value) -> ArlowGrid:
    """The grid of one item, from image_grid_thw int64 [1, 3]."""
    row = op.Reshape(grid_thw, [3])
    return ArlowGrid(*(op.Slice(row, [axis], [axis + 1], [0]) for axis in range(3)))


def _offset_bias(op: Op, grid: ArlowGrid, locality: Locality) -> Value:
    """The bias of each offset along the three axes, float32 [2 frames - 1, 2 height - 1, 2 width - 1]."""
    squares = None
    for axis, size in enumerate(grid.sizes):
        last = op.Squeeze(op.Sub(size, [1]), [0])
        offset = op.Cast(op.Range(op.Neg(last), op.Add(last, 1), 1), to=F64)
        unit = op.Cast(op.Max(last, 1), to=F64)  # an axis of one patch has no distance
        part = op.Reshape(op.Div(op.Mul(offset, offset), op.Mul(unit, unit)), [-1] + [1] * (2 - axis))
        squares = part if squares is None else op.Add(squares, part)
    near = op.Mul(op.Sqrt(squares), _double(op, -locality.strength))
    if locality.radius <= 0:
        return op.Cast(near, to=F32)
    inside = op.LessOrEqual(squares, _double(op, locality.radius**2 * (1 + ROUNDING)))
    return op.Cast(op.Where(inside, near, op.Add(near, _double(op, locality.outside))), to=F32)


def _double(op: Op, value: float) -> Value:
    return op.Constant(value=ir.tensor(np.array(value, np.float64)))


def _double_along(op: Op, x: Value, axis: int) -> Value:
    """Twice as many entries along an axis of [frames, height, width, D], linearly interpolated."""
    first, rest = op.Slice(x, [0], [1], [axis]), op.Slice(x, [1], [np.iinfo(np.int64).max], [axis])
    body, last = op.Slice(x, [0], [-1], [axis]), op.Slice(x, [-1], [np.iinfo(np.int64).max], [axis])
    own = op.Mul(x, [0.75])
    before = op.Add(own, op.Mul(op.Concat(first, body, axis=axis), [0.25]))
    behind = op.Add(own, op.Mul(op.Concat(rest, last, axis=axis), [0.25]))
    pairs = op.Concat(op.Unsqueeze(before, [axis + 1]), op.Unsqueeze(behind, [axis + 1]), axis=axis + 1)
    shape = op.Shape(x)
    doubled = op.Mul(op.Slice(shape, [axis], [axis + 1], [0]), [2])
    parts = [op.Slice(shape, [0], [axis], [0]), doubled, op.Slice(shape, [axis + 1], [4], [0])]
    return op.Reshape(pairs, op.Concat(*parts, axis=0))
