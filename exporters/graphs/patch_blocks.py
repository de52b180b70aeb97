"""What towers over patches of any grid share: the projection of patches, attention, layers, and a merger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnxscript import nn

from ..storage.scheme import Policy
from ..tower_specs import PatchTransformer
from .blocks import LayerNorm, Linear, RMSNorm
from .dialect import Angles, Dialect
from .graph_terms import Op, Value


class PatchProjection(nn.Module):
    """The patch projection; its convolution covers a patch exactly, so it is a matrix product."""

    def __init__(self, dialect: Dialect, spec: PatchTransformer, policy: Policy, *, bias: bool) -> None:
        super().__init__()
        scheme = policy.scheme("vision.patch", spec.patch_dim)
        self.proj = Linear(dialect, spec.patch_dim, spec.hidden, scheme, bias=bias)

    def forward(self, op: Op, patches: Value) -> Value:
        return self.proj(op, patches)


class PatchAttention(nn.Module):
    """Full self-attention within a frame, with 2-D rotary positions."""

    def __init__(self, dialect: Dialect, spec: PatchTransformer, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.heads = dialect, spec.heads
        size = spec.hidden
        self.qkv = Linear(dialect, size, 3 * size, policy.scheme("vision.qkv", size), bias=True)
        self.proj = Linear(dialect, size, size, policy.scheme("vision.proj", size), bias=True)

    def forward(self, op: Op, x: Value, angles: Angles) -> Value:
        q, k, v = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        q, k = (self.dialect.rotary(op, part, angles, self.heads) for part in (q, k))
        quantized = self.qkv.weight.scheme.quantized
        return self.proj(op, self.dialect.attention(op, q, k, v, self.heads, rounded=quantized))


class ResidualBlock(nn.Module):
    """One transformer layer. Carries the residual stream and the last addition to it, so that norms can fuse them."""

    def __init__(self, norms: Iterable[LayerNorm | RMSNorm], attn: nn.Module, mlp: nn.Module) -> None:
        """`norms` are that in front of attention and that in front of the MLP."""
        super().__init__()
        self.norm1: LayerNorm | RMSNorm
        self.norm2: LayerNorm | RMSNorm
        self.norm1, self.norm2 = norms
        self.attn, self.mlp = attn, mlp

    def forward(self, op: Op, stream: Value, delta: Value | None, *around: Any) -> tuple[Value, Value]:
        """`around` is what attention takes besides: angles, and windows where there are any."""
        normed, stream = self.norm1(op, stream, delta)
        normed, stream = self.norm2(op, stream, self.attn(op, normed, *around))
        return stream, self.mlp(op, normed)


class PatchMerger(nn.Module):
    """Blocks of patches to image tokens, with the exact GELU."""

    def __init__(self, dialect: Dialect, norm: LayerNorm | RMSNorm, sizes: tuple[int, int], policy: Policy) -> None:
        """`sizes` are the width of a block of patches and that of an image token."""
        super().__init__()
        self.dialect, (self.merged, out) = dialect, sizes
        self.ln_q = norm
        first = Linear(dialect, self.merged, self.merged, policy.scheme("merger.fc1", self.merged), bias=True)
        second = Linear(dialect, self.merged, out, policy.scheme("merger.fc2", self.merged), bias=True)
        self.mlp = nn.ModuleList([first, nn.Module(), second])  # the place between them is the activation's

    def forward(self, op: Op, stream: Value, delta: Value | None = None) -> Value:
        """[images, P, D] and what is still to be added to it, to [image tokens, out_hidden]."""
        blocks = op.Reshape(self.ln_q(op, stream, delta)[0], [-1, self.merged])
        return self.mlp[2](op, self.dialect.activation(op, self.mlp[0](op, blocks), "gelu"))
