"""Graph description of the vision encoder of Qwen2-VL: patches of any grid to image tokens.

Sizes in shapes: P patches of an image, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxscript import nn

from ...graphs.blocks import LayerNorm
from ...graphs.dialect import Dialect
from ...graphs.graph_terms import Op, Value
from ...graphs.patch_blocks import PatchAttention, PatchMerger, PatchProjection, ResidualBlock
from ...graphs.vit import given_grid, patch_angles, read_grid
from ...graphs.vit_clip import ClipMLP
from ...storage.scheme import Policy
from .axial_spec import AxialTransformer


class AxialEncoder(nn.Module):
    """pixel_values [patches, patch_dim] and image_grid_thw [images, 3] to image tokens, for images of one size."""

    def __init__(self, dialect: Dialect, spec: AxialTransformer, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        self.patch_embed = PatchProjection(dialect, spec, policy, bias=False)
        self.blocks = nn.ModuleList([self._block(policy) for _ in range(spec.depth)])
        self.merger = PatchMerger(dialect, self._norm(), (spec.merged_hidden, spec.out_hidden), policy)

    def _norm(self) -> LayerNorm:
        return LayerNorm(self.dialect, self.spec.hidden, self.spec.norm_eps)

    def _block(self, policy: Policy) -> ResidualBlock:
        attn, mlp = PatchAttention(self.dialect, self.spec, policy), ClipMLP(self.dialect, self.spec, policy)
        return ResidualBlock((self._norm(), self._norm()), attn, mlp)

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
