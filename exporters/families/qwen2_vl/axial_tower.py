"""Graph description of the vision encoder of Qwen2-VL: patches of any grid to image tokens.

Sizes in shapes: P patches of an image, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxscript import nn

from ...graphs.blocks import Angles, Dialect, LayerNorm, Linear, Op, Value
from ...graphs.vit import Attention, given_grid, patch_angles, read_grid
from ...graphs.vit_clip import MLP
from ...storage.scheme import Policy
from .axial_spec import AxialTransformer


class PatchProjection(nn.Module):
    """The patch projection; its convolution covers a patch exactly, so it is a matrix product."""

    def __init__(self, dialect: Dialect, spec: AxialTransformer, policy: Policy) -> None:
        super().__init__()
        scheme = policy.scheme("vision.patch", spec.patch_dim)
        self.proj = Linear(dialect, spec.patch_dim, spec.hidden, scheme, bias=False)

    def forward(self, op: Op, patches: Value) -> Value:
        return self.proj(op, patches)


class AxialBlock(nn.Module):
    """One transformer layer. Carries the residual stream and the last addition to it, so that norms can fuse them."""

    def __init__(self, dialect: Dialect, spec: AxialTransformer, policy: Policy) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dialect, spec.hidden, spec.norm_eps)
        self.norm2 = LayerNorm(dialect, spec.hidden, spec.norm_eps)
        self.attn = Attention(dialect, spec, policy)
        self.mlp = MLP(dialect, spec, policy)

    def forward(self, op: Op, stream: Value, delta: Value | None, angles: Angles) -> tuple[Value, Value]:
        normed, stream = self.norm1(op, stream, delta)
        normed, stream = self.norm2(op, stream, self.attn(op, normed, angles))
        return stream, self.mlp(op, normed)


class PatchMerger(nn.Module):
    """Blocks of patches to image tokens, with the exact GELU."""

    def __init__(self, dialect: Dialect, spec: AxialTransformer, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.merged = dialect, spec.merged_hidden
        self.ln_q = LayerNorm(dialect, spec.hidden, spec.norm_eps)
        first = Linear(dialect, self.merged, self.merged, policy.scheme("merger.fc1", self.merged), bias=True)
        second = Linear(dialect, self.merged, spec.out_hidden, policy.scheme("merger.fc2", self.merged), bias=True)
        self.mlp = nn.ModuleList([first, nn.Module(), second])  # the place between them is the activation's

    def forward(self, op: Op, stream: Value, delta: Value | None) -> Value:
        """[images, P, D] and the last addition to it to [image tokens, out_hidden]."""
        blocks = op.Reshape(self.ln_q(op, stream, delta)[0], [-1, self.merged])
        return self.mlp[2](op, self.dialect.activation(op, self.mlp[0](op, blocks), "gelu"))


class AxialEncoder(nn.Module):
    """pixel_values [patches, patch_dim] and image_grid_thw [images, 3] to image tokens, for images of one size."""

    def __init__(self, dialect: Dialect, spec: AxialTransformer, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        self.patch_embed = PatchProjection(dialect, spec, policy)
        self.blocks = nn.ModuleList([AxialBlock(dialect, spec, policy) for _ in range(spec.depth)])
        self.merger = PatchMerger(dialect, spec, policy)

    def forward(
        self, op: Op, pixel_values: Value, grid_thw: Value, places: Mapping[str, Value]
    ) -> tuple[Value, Value | None]:
        """image_features [tokens, out_hidden], and no features for DeepStack.

        `places` are the inputs of INDEX_PORTS, in dialects that want them.
        """
        dialect = self.dialect
        grid = given_grid(op, grid_thw, places) if places else read_grid(op, grid_thw, self.spec.merge_size)
        angles = patch_angles(op, dialect, grid, self.spec)
        stream = grid.by_frame(op, self.patch_embed(op, dialect.enter(op, pixel_values)))
        delta: Value | None = None
        for block in self.blocks:
            stream, delta = block(op, stream, delta, angles)
        return dialect.leave(op, self.merger(op, stream, delta)), None
