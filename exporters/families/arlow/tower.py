"""Graph description of the Arlow vision encoder: flat patches of any grid to image tokens, with DeepStack outputs.

Sizes in shapes: S patches of one image or clip, D hidden, M = merge_size**2 * D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxscript import nn

from ...graphs.blocks import LayerNorm, Linear
from ...graphs.dialect import Angles, Dialect
from ...graphs.graph_terms import Op, Value
from ...graphs.patch_blocks import PatchProjection
from ...storage.scheme import Policy
from .arlow_spec import ArlowSpec
from .grid import ArlowGrid, read_grid
from .indexed_grid import IndexedGrid


@dataclass(frozen=True)
class Surroundings:
    """What all blocks share: rotary angles, and the bias of attention with its reach."""

    angles: Angles
    bias: Value | None
    reach: Value | None


class Attention(nn.Module):
    """Attention among all patches of an item, in the conventions of the revision."""

    def __init__(self, dialect: Dialect, spec: ArlowSpec, policy: Policy) -> None:
        super().__init__()
        size = spec.hidden
        self.dialect, self.spec = dialect, spec
        self.qkv = Linear(dialect, size, 3 * size, policy.scheme("vision.qkv", size), bias=True)
        self.proj = Linear(dialect, size, size, policy.scheme("vision.proj", size), bias=True)

    def forward(self, op: Op, x: Value, around: Surroundings) -> Value:
        q, k, v = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        q, k = (self._rotate(op, part, around.angles) for part in (q, k))
        if around.bias is None:
            y = self.dialect.attention(op, q, k, v, self.spec.heads)
        else:
            y = self.dialect.biased_attention(op, q, k, v, self.spec.heads, around.bias, around.reach)
        return self.proj(op, self._rows(op, y))

    def _rotate(self, op: Op, x: Value, angles: Angles) -> Value:
        if self.spec.conventions.rotary_pairs == "halves":
            return self.dialect.rotary(op, x, angles, self.spec.heads)
        return rotate_neighbours(op, x, angles, self.spec)

    def _rows(self, op: Op, y: Value) -> Value:
        """What the output projection sees of y [1, S, D], in which heads lie side by side."""
        if self.spec.conventions.attention_rows == "heads":
            return y
        by_head = op.Transpose(op.Reshape(y, [0, 0, self.spec.heads, -1]), perm=[0, 2, 1, 3])
        return op.Reshape(by_head, op.Shape(y))


def rotate_neighbours(op: Op, x: Value, angles: Angles, spec: ArlowSpec) -> Value:
    """Each feature of x [1, S, D] with its neighbour. No rotation: the two of a pair have different angles."""

    def table(values: Value) -> Value:  # [S, head_dim / 2] to [1, S, 1, head_dim]
        return op.Unsqueeze(op.Concat(values, values, axis=-1), [0, 2])

    heads = op.Reshape(x, [0, 0, spec.heads, spec.head_dim])
    first, second = op.Split(op.Reshape(x, [0, 0, -1, 2]), axis=-1, num_outputs=2, _outputs=2)
    partners = op.Reshape(op.Concat(op.Neg(second), first, axis=-1), op.Shape(heads))
    turned = op.Add(op.Mul(heads, table(angles.cos)), op.Mul(partners, table(angles.sin)))
    return op.Reshape(turned, op.Shape(x))


class Block(nn.Module):
    """One transformer layer. Carries the residual stream and the last addition to it, so that norms can fuse them."""

    def __init__(self, dialect: Dialect, spec: ArlowSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.act = dialect, spec.activation
        size, inner = spec.hidden, spec.intermediate
        self.norm1 = LayerNorm(dialect, size, spec.norm_eps)
        self.norm2 = LayerNorm(dialect, size, spec.norm_eps)
        self.attn = Attention(dialect, spec, policy)
        self.fc1 = Linear(dialect, size, inner, policy.scheme("vision.fc1", size), bias=True)
        self.fc2 = Linear(dialect, inner, size, policy.scheme("vision.fc2", inner), bias=True)

    def forward(self, op: Op, stream: Value, delta: Value | None, around: Surroundings) -> tuple[Value, Value]:
        normed, stream = self.norm1(op, stream, delta)
        normed, stream = self.norm2(op, stream, self.attn(op, normed, around))
        return stream, self.fc2(op, self.dialect.activation(op, self.fc1(op, normed), self.act))


class ArlowMerger(nn.Module):
    """Blocks of patches to image tokens; the exact GELU whatever the activation of the blocks."""

    def __init__(self, dialect: Dialect, spec: ArlowSpec, policy: Policy, *, role: str) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        size = spec.merged_hidden
        self.ln_q = LayerNorm(dialect, size, spec.norm_eps)
        first = Linear(dialect, size, size, policy.scheme(f"{role}.fc1", size), bias=True)
        second = Linear(dialect, size, spec.out_hidden, policy.scheme(f"{role}.fc2", size), bias=True)
        self.mlp = nn.ModuleList([first, nn.Module(), second])  # the place between them is the activation's

    def forward(self, op: Op, x: Value, grid: ArlowGrid | IndexedGrid) -> Value:
        """[1, S, D] to [S / merge**2, out_hidden]."""
        normed, _ = self.ln_q(op, grid.group(op, x, self.spec.merge_size, self.spec.hidden))
        return self.mlp[2](op, self.dialect.activation(op, self.mlp[0](op, normed), "gelu"))


class ArlowEncoder(nn.Module):
    """pixel_values [S, patch_dim] and image_grid_thw [1, 3] of one image or clip to image tokens."""

    def __init__(self, dialect: Dialect, spec: ArlowSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        self.patch_embed = PatchProjection(dialect, spec, policy, bias=False)
        if spec.progressive:
            scheme = policy.scheme("vision.progressive", spec.hidden)
            self.progressive_proj = Linear(dialect, spec.hidden, spec.hidden, scheme, bias=True)
        self.blocks = nn.ModuleList([Block(dialect, spec, policy) for _ in range(spec.depth)])
        self.merger = ArlowMerger(dialect, spec, policy, role="merger")
        taps: list[nn.Module] = [ArlowMerger(dialect, spec, policy, role="deepstack") for _ in spec.deepstack_layers]
        self.deepstack_mergers = nn.ModuleList(taps)

    def forward(
        self, op: Op, pixel_values: Value, grid_thw: Value, places: Mapping[str, Value]
    ) -> tuple[Value, Value | None]:
        """image_features [S / merge**2, out_hidden] and deepstack_features [taps, S / merge**2, out_hidden] or None.

        `places` are the inputs of `index_ports`, in dialects that want them.
        """
        grid = IndexedGrid(places, self.dialect) if places else read_grid(op, grid_thw)
        stream, delta = self._embed(op, self.dialect.enter(op, pixel_values), grid)
        around = self._surroundings(op, grid)
        taps: list[Value] = []
        for index, block in enumerate(self.blocks):
            stream, delta = block(op, stream, delta, around)
            if index in self.spec.deepstack_layers:
                stream, delta = op.Add(stream, delta), None
                taps.append(self.deepstack_mergers[len(taps)](op, stream, grid))
        features = self.merger(op, stream if delta is None else op.Add(stream, delta), grid)
        joined = op.Concat(*(op.Unsqueeze(tap, [0]) for tap in taps), axis=0) if taps else None
        leave = self.dialect.leave
        return leave(op, features), None if joined is None else leave(op, joined)

    def _embed(self, op: Op, patches: Value, grid: ArlowGrid | IndexedGrid) -> tuple[Value, Value | None]:
        """The embedded patches [1, S, D] in raster order, and what progressive patches add to them."""
        x = op.Unsqueeze(self.patch_embed(op, patches), [0])
        if self.spec.conventions.patch_order == "windows":
            x = grid.to_raster(op, x, self.spec.merge_size)
        if not self.spec.progressive:
            return x, None
        return x, self.progressive_proj(op, grid.coarse(op, x, self.spec.hidden))

    def _surroundings(self, op: Op, grid: ArlowGrid | IndexedGrid) -> Surroundings:
        angles, locality = grid.patch_angles(op, self.dialect, self.spec), self.spec.locality
        if locality is None:
            return Surroundings(angles, None, None)
        return Surroundings(angles, grid.locality_bias(op, locality), grid.reach(op, locality))
