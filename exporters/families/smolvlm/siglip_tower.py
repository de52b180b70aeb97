"""Graph description of the vision encoder of SmolVLM and Idefics3: a SigLIP tower, and squares of patches to tokens."""

from __future__ import annotations

from onnxscript import nn

from ...graphs.blocks import LayerNorm, Linear
from ...graphs.dialect import Dialect
from ...graphs.graph_terms import Op, Value
from ...graphs.vit_clip import ClipLayer, cut_patches
from ...storage.scheme import Policy
from .siglip_spec import SiglipSpec


class SiglipPositions(nn.Module):
    """The learned position of each patch [patches, hidden]."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter([spec.side**2, spec.hidden])

    def forward(self, op: Op) -> Value:
        return self.weight


class SiglipEmbeddings(nn.Module):
    """Patches through a projection, and a learned position for each. A tile has no padding: all positions are used."""

    def __init__(self, dialect: Dialect, spec: SiglipSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        scheme = policy.scheme("vision.patch", spec.patch_dim)
        self.patch_embedding = Linear(dialect, spec.patch_dim, spec.hidden, scheme, bias=True)
        self.position_embedding = SiglipPositions(spec)

    def forward(self, op: Op, pixels: Value) -> Value:
        """[tiles, patches, hidden]."""
        patches = self.patch_embedding(op, cut_patches(op, self.dialect.enter(op, pixels), self.spec))
        return op.Add(patches, self.dialect.enter(op, self.position_embedding(op)))


class SiglipEncoder(nn.Module):
    """All layers. Gives the residual stream and the last addition to it, so that the norm behind can fuse them."""

    def __init__(self, dialect: Dialect, spec: SiglipSpec, policy: Policy) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ClipLayer(dialect, spec, policy) for _ in range(spec.depth)])

    def forward(self, op: Op, stream: Value) -> tuple[Value, Value | None]:
        delta: Value | None = None
        for layer in self.layers:
            stream, delta = layer(op, stream, delta)
        return stream, delta


class SiglipTower(nn.Module):
    """pixel_values [tiles, 3, side, side] to normed patches."""

    def __init__(self, dialect: Dialect, spec: SiglipSpec, policy: Policy) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(dialect, spec, policy)
        self.encoder = SiglipEncoder(dialect, spec, policy)
        self.post_layernorm = LayerNorm(dialect, spec.hidden, spec.norm_eps)

    def forward(self, op: Op, pixels: Value) -> Value:
        """[tiles, patches, hidden]."""
        stream, delta = self.encoder(op, self.embeddings(op, pixels))
        return self.post_layernorm(op, stream, delta)[0]


class ModalityProjection(nn.Module):
    """One linear layer without bias, from the width of a square of patches to that of the decoder."""

    def __init__(self, dialect: Dialect, spec: SiglipSpec, policy: Policy) -> None:
        super().__init__()
        scheme = policy.scheme("merger.proj", spec.shuffled)
        self.proj = Linear(dialect, spec.shuffled, spec.out_hidden, scheme, bias=False)

    def forward(self, op: Op, x: Value) -> Value:
        return self.proj(op, x)


class Connector(nn.Module):
    """Patches of each square side by side (pixel shuffle), then projected."""

    def __init__(self, dialect: Dialect, spec: SiglipSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        self.modality_projection = ModalityProjection(dialect, spec, policy)

    def forward(self, op: Op, patches: Value) -> Value:
        """float32 [image_tokens, out_hidden] of patches [tiles, patches, hidden]."""
        spec, count = self.spec, self.spec.side // self.spec.shuffle
        squares = op.Reshape(patches, [-1, count, spec.shuffle, count, spec.shuffle, spec.hidden])
        tokens = op.Reshape(op.Transpose(squares, perm=[0, 1, 3, 2, 4, 5]), [-1, spec.shuffled])
        return self.dialect.leave(op, self.modality_projection(op, tokens))
