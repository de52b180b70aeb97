"""Graph description of the CLIP vision tower and LLaVA's projector: pixels of one size to image tokens."""

from __future__ import annotations

from typing import Protocol

from onnxscript import nn

from ..storage.scheme import Policy
from ..tower_specs import ClipTowerSpec
from .blocks import LayerNorm, Linear
from .dialect import Dialect
from .graph_terms import Op, Value


class PixelShape(Protocol):
    """What images of one size become patches by."""

    @property
    def channels(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def side(self) -> int: ...
    @property
    def patch_dim(self) -> int: ...


class LayerShape(Protocol):
    """What a layer of CLIP or SigLIP follows from."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...


def cut_patches(op: Op, pixels: Value, spec: PixelShape) -> Value:
    """Pixels [images, channels, side, side] as [images, patches, patch_dim], pixels behind whole patches left out.

    A convolution that covers each patch exactly is then a matrix product.
    """
    whole = spec.side * spec.patch_size
    if whole < spec.image_size:
        pixels = op.Slice(pixels, [0, 0], [whole, whole], [2, 3])
    cut = op.Reshape(pixels, [-1, spec.channels, spec.side, spec.patch_size, spec.side, spec.patch_size])
    return op.Reshape(op.Transpose(cut, perm=[0, 2, 4, 1, 3, 5]), [-1, spec.side**2, spec.patch_dim])


class ClipEmbeddings(nn.Module):
    """Patches through a projection, a class token in front of them, and a learned position for each."""

    def __init__(self, dialect: Dialect, spec: ClipTowerSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        scheme = policy.scheme("vision.patch", spec.patch_dim)
        self.class_embedding = nn.Parameter([spec.hidden])
        self.patch_embedding = Linear(dialect, spec.patch_dim, spec.hidden, scheme, bias=False)
        self.position_embedding = ClipPositions(spec)

    def forward(self, op: Op, pixels: Value) -> Value:
        """float32 [images, 1 + patches, hidden]."""
        patches = self.patch_embedding(op, cut_patches(op, self.dialect.enter(op, pixels), self.spec))
        one = op.Slice(patches, [0], [1], [1])
        first = op.Expand(self.dialect.enter(op, self.class_embedding), op.Shape(one))
        return op.Add(op.Concat(first, patches, axis=1), self.dialect.enter(op, self.position_embedding(op)))


class ClipPositions(nn.Module):
    """The learned position table [1 + patches, hidden]."""

    def __init__(self, spec: ClipTowerSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter([spec.side**2 + 1, spec.hidden])

    def forward(self, op: Op) -> Value:
        return self.weight


class ClipAttention(nn.Module):
    """Full self-attention of each image."""

    def __init__(self, dialect: Dialect, spec: LayerShape, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.heads = dialect, spec.heads
        size, scheme = spec.hidden, policy.scheme("vision.qkv", spec.hidden)
        self.q_proj = Linear(dialect, size, size, scheme, bias=True)
        self.k_proj = Linear(dialect, size, size, scheme, bias=True)
        self.v_proj = Linear(dialect, size, size, scheme, bias=True)
        self.out_proj = Linear(dialect, size, size, policy.scheme("vision.proj", size), bias=True)

    def forward(self, op: Op, x: Value) -> Value:
        q, k, v = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        quantized = self.q_proj.weight.scheme.quantized
        return self.out_proj(op, self.dialect.attention(op, q, k, v, self.heads, rounded=quantized))


class ClipMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dialect: Dialect, spec: LayerShape, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.act = dialect, spec.activation
        wide, narrow = spec.intermediate, spec.hidden
        self.fc1 = Linear(dialect, narrow, wide, policy.scheme("vision.fc1", narrow), bias=True)
        self.fc2 = Linear(dialect, wide, narrow, policy.scheme("vision.fc2", wide), bias=True)

    def forward(self, op: Op, x: Value) -> Value:
        return self.fc2(op, self.dialect.activation(op, self.fc1(op, x), self.act))


class ClipLayer(nn.Module):
    """One transformer layer. Carries the residual stream and the last addition to it, so that norms can fuse them."""

    def __init__(self, dialect: Dialect, spec: LayerShape, policy: Policy) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(dialect, spec.hidden, spec.norm_eps)
        self.layer_norm2 = LayerNorm(dialect, spec.hidden, spec.norm_eps)
        self.self_attn = ClipAttention(dialect, spec, policy)
        self.mlp = ClipMLP(dialect, spec, policy)

    def forward(self, op: Op, stream: Value, delta: Value | None) -> tuple[Value, Value]:
        normed, stream = self.layer_norm1(op, stream, delta)
        normed, stream = self.layer_norm2(op, stream, self.self_attn(op, normed))
        return stream, self.mlp(op, normed)


class ClipEncoder(nn.Module):
    """The layers up to the last one whose states are used; the others are neither run nor stored."""

    def __init__(self, dialect: Dialect, spec: ClipTowerSpec, policy: Policy) -> None:
        super().__init__()
        self.depths = spec.feature_depths
        self.layers = nn.ModuleList([ClipLayer(dialect, spec, policy) for _ in range(spec.used_depth)])

    def forward(self, op: Op, stream: Value) -> list[Value]:
        """The states [images, 1 + patches, hidden] of each feature depth, in their order."""
        states, delta = {0: stream}, None
        for depth, layer in enumerate(self.layers, start=1):
            stream, delta = layer(op, stream, delta)
            if depth in self.depths:
                stream, delta = op.Add(stream, delta), None
                states[depth] = stream
        return [states[depth] for depth in self.depths]


class ClipTower(nn.Module):
    """pixel_values [images, 3, side, side] to the states that the projector takes."""

    def __init__(self, dialect: Dialect, spec: ClipTowerSpec, policy: Policy) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = ClipEmbeddings(dialect, spec, policy)
        self.pre_layrnorm = LayerNorm(dialect, spec.hidden, spec.norm_eps)  # so spelt in the checkpoints
        self.encoder = ClipEncoder(dialect, spec, policy)

    def forward(self, op: Op, pixels: Value) -> Value:
        """float32 [image_tokens, hidden * feature depths]."""
        states = self.encoder(op, self.pre_layrnorm(op, self.embeddings(op, pixels))[0])
        joined = states[0] if len(states) == 1 else op.Concat(*states, axis=-1)
        if not self.spec.keep_class:
            joined = op.Slice(joined, [1], [2**62], [1])
        return op.Reshape(joined, [-1, self.spec.hidden * len(states)])


class Projector(nn.Module):
    """Two linear layers from the width of the tower to that of the decoder."""

    def __init__(self, dialect: Dialect, spec: ClipTowerSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.act = dialect, spec.projector_activation
        wide, out, bias = spec.hidden * len(spec.feature_depths), spec.out_hidden, spec.projector_bias
        self.linear_1 = Linear(dialect, wide, out, policy.scheme("merger.fc1", wide), bias=bias)
        self.linear_2 = Linear(dialect, out, out, policy.scheme("merger.fc2", out), bias=bias)

    def forward(self, op: Op, x: Value) -> Value:
        return self.dialect.leave(op, self.linear_2(op, self.dialect.activation(op, self.linear_1(op, x), self.act)))
