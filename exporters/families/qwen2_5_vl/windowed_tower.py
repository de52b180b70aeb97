"""Graph description of the vision encoder of Qwen2.5-VL: patches of any grid to image tokens, in windows and whole.

Sizes in shapes: P patches of an image, D hidden, W windows, A patches of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from ...graphs.blocks import Linear, RMSNorm
from ...graphs.dialect import Angles, Dialect
from ...graphs.graph_terms import Op, Port, Value
from ...graphs.patch_blocks import PatchMerger, PatchProjection, ResidualBlock
from ...graphs.vit import INDEX_PORTS, GridSizes, given_grid, patch_angles, read_grid
from ...storage.scheme import Policy
from .windowed_spec import WindowedSpec

OUTSIDE = -1e4  # added to the scores of places of a window where no patch is: their weights are exactly 0


@dataclass(frozen=True)
class Windows:
    """The patches of an image in windows: those at its right and lower edge stick out, and have places without one."""

    taken: Value  # int64 [W * A], the patch at each place; any other one where there is none
    places: Value  # int64 [P], the place of each patch
    bias: Value  # [W, 1, A, A]
    area: int  # A

    def split(self, op: Op, x: Value, width: int) -> Value:
        """[1, P, width] to [W, A, width]."""
        return op.Reshape(op.Gather(x, self.taken, axis=1), [-1, self.area, width])

    def join(self, op: Op, x: Value, width: int) -> Value:
        """[W, A, width] to [1, P, width]."""
        return op.Gather(op.Reshape(x, [1, -1, width]), self.places, axis=1)


def make_windows(op: Op, dialect: Dialect, grid: GridSizes, patches: Value, spec: WindowedSpec) -> Windows:
    """The windows of a grid of so many `patches`, int64 [1], which come in blocks that become an image token."""
    side, unit = spec.window, spec.merge_size**2
    rows, columns = (op.Div(size, [spec.merge_size]) for size in (grid.height, grid.width))
    down, across = (op.Div(op.Add(size, [side - 1]), [side]) for size in (rows, columns))
    shape = op.Concat(down, [side], across, [side], axis=0)
    # Never more than a window for each `side` tokens and those at the ends, which is what bounds the work of a graph.
    most = op.Div(op.Add(op.Div(patches, [unit]), [3 * side]), [side])
    count = op.Min(op.Mul(down, across), most)

    def by_window(table: Value) -> Value:  # [down * side, across * side] to [W, side * side]
        windows = op.Transpose(op.Reshape(table, shape), perm=[0, 2, 1, 3])
        return op.Reshape(windows, op.Concat(count, [side * side], axis=0))

    def axis(windows: Value, size: Value) -> tuple[Value, Value]:
        index, last = op.Range(0, op.Squeeze(op.Mul(windows, [side]), [0]), 1), op.Sub(size, [1])
        inside = op.LessOrEqual(index, last)
        return op.Min(index, last), op.Where(inside, op.Constant(value_float=0.0), op.Constant(value_float=OUTSIDE))

    (row, row_bias), (column, column_bias) = axis(down, rows), axis(across, columns)
    tokens = by_window(op.Add(op.Unsqueeze(op.Mul(row, columns), [1]), op.Unsqueeze(column, [0])))
    bias = by_window(op.Add(op.Unsqueeze(row_bias, [1]), op.Unsqueeze(column_bias, [0])))
    return Windows(
        _patches(op, tokens, unit),
        _patches(op, _places(op, rows, columns, across, side), unit),
        dialect.enter(op, _bias(op, bias, side * side, unit)),
        side * side * unit,
    )


def window_ports(spec: WindowedSpec) -> dict[str, Port]:
    """The inputs of dialects in which no value decides a shape: where patches lie, and the windows that they lie in."""
    area = (spec.window * spec.merge_size) ** 2
    windows: dict[str, Port] = {
        "window_patches": (ir.DataType.INT64, ["windows", area]),
        "window_bias": (ir.DataType.FLOAT, ["windows", area]),
        "window_places": (ir.DataType.INT64, ["patches"]),
    }
    return {**INDEX_PORTS, **windows}


def given_windows(op: Op, dialect: Dialect, places: Mapping[str, Value], spec: WindowedSpec) -> Windows:
    """The windows that the inputs of `window_ports` say."""
    area = (spec.window * spec.merge_size) ** 2
    bias = op.Expand(op.Unsqueeze(places["window_bias"], [1, 2]), [1, 1, area, 1])
    return Windows(op.Reshape(places["window_patches"], [-1]), places["window_places"], dialect.enter(op, bias), area)


def _patches(op: Op, tokens: Value, unit: int) -> Value:
    """The indices of all patches of image tokens, one behind the other."""
    of_token = op.Constant(value=ir.tensor(np.arange(unit, dtype=np.int64)))
    return op.Reshape(op.Add(op.Mul(op.Unsqueeze(op.Reshape(tokens, [-1]), [1]), [unit]), of_token), [-1])


def _places(op: Op, rows: Value, columns: Value, across: Value, side: int) -> Value:
    """The place among all windows of each image token in raster order."""
    token = op.Range(0, op.Squeeze(op.Mul(rows, columns), [0]), 1)
    row = op.Div(token, columns)
    column = op.Sub(token, op.Mul(row, columns))
    down, across_it = op.Div(row, [side]), op.Div(column, [side])
    window = op.Add(op.Mul(down, across), across_it)
    inner = op.Add(op.Mul(op.Sub(row, op.Mul(down, [side])), [side]), op.Sub(column, op.Mul(across_it, [side])))
    return op.Add(op.Mul(window, [side * side]), inner)


def _bias(op: Op, tokens: Value, places: int, unit: int) -> Value:
    """[W, 1, A, A] from the bias of the image token at each of the places of a window, [W, places]."""
    area = places * unit
    patches = op.Reshape(op.Expand(op.Unsqueeze(tokens, [2]), [1, 1, unit]), [-1, 1, 1, area])
    return op.Expand(patches, [1, 1, area, 1])


class WindowedAttention(nn.Module):
    """Self-attention within windows or the whole image, with 2-D rotary positions."""

    def __init__(self, dialect: Dialect, spec: WindowedSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.heads, self.size = dialect, spec.heads, spec.hidden
        size = spec.hidden
        self.qkv = Linear(dialect, size, 3 * size, policy.scheme("vision.qkv", size), bias=True)
        self.proj = Linear(dialect, size, size, policy.scheme("vision.proj", size), bias=True)

    def forward(self, op: Op, x: Value, angles: Angles, windows: Windows | None) -> Value:
        """[1, P, D], within windows if there are any."""
        q, k, v = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        q, k = (self.dialect.rotary(op, part, angles, self.heads) for part in (q, k))
        if windows is None:
            quantized = self.qkv.weight.scheme.quantized
            return self.proj(op, self.dialect.attention(op, q, k, v, self.heads, rounded=quantized))
        q, k, v = (windows.split(op, part, self.size) for part in (q, k, v))
        y = self.dialect.masked_attention(op, q, k, v, self.heads, windows.bias)
        return self.proj(op, windows.join(op, y, self.size))


class WindowedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) with biases."""

    def __init__(self, dialect: Dialect, spec: WindowedSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.act = dialect, spec.activation
        size, inner = spec.hidden, spec.intermediate
        self.gate_proj = Linear(dialect, size, inner, policy.scheme("vision.fc1", size), bias=True)
        self.up_proj = Linear(dialect, size, inner, policy.scheme("vision.fc1", size), bias=True)
        self.down_proj = Linear(dialect, inner, size, policy.scheme("vision.fc2", inner), bias=True)

    def forward(self, op: Op, x: Value) -> Value:
        gate = self.dialect.activation(op, self.gate_proj(op, x), self.act)
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class WindowedEncoder(nn.Module):
    """pixel_values [patches, patch_dim] and image_grid_thw [1, 3] of one image to image tokens."""

    def __init__(self, dialect: Dialect, spec: WindowedSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        self.patch_embed = PatchProjection(dialect, spec, policy, bias=False)
        self.blocks = nn.ModuleList([self._block(policy) for _ in range(spec.depth)])
        self.merger = PatchMerger(dialect, self._norm(), (spec.merged_hidden, spec.out_hidden), policy)

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.dialect, self.spec.hidden, self.spec.norm_eps)

    def _block(self, policy: Policy) -> ResidualBlock:
        attn, mlp = WindowedAttention(self.dialect, self.spec, policy), WindowedMLP(self.dialect, self.spec, policy)
        return ResidualBlock((self._norm(), self._norm()), attn, mlp)

    def forward(
        self, op: Op, pixel_values: Value, grid_thw: Value, places: Mapping[str, Value]
    ) -> tuple[Value, Value | None]:
        """image_features [tokens, out_hidden], and no features for DeepStack.

        `places` are the inputs of `window_ports`, in dialects that want them.
        """
        dialect, spec = self.dialect, self.spec
        grid = given_grid(op, grid_thw, places) if places else read_grid(op, grid_thw, spec.merge_size)
        grid = replace(grid, frames=None)
        angles = patch_angles(op, dialect, grid, spec)
        patches = op.Shape(pixel_values, start=0, end=1)
        windows = given_windows(op, dialect, places, spec) if places else make_windows(op, dialect, grid, patches, spec)
        stream = grid.by_frame(op, self.patch_embed(op, dialect.enter(op, pixel_values)))
        delta: Value | None = None
        for index, block in enumerate(self.blocks):
            within = None if index in spec.full_layers else windows
            stream, delta = block(op, stream, delta, angles, within)
        return dialect.leave(op, self.merger(op, stream if delta is None else op.Add(stream, delta))), None
