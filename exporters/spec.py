"""What a vision-language model is, in our own names: frozen, validated, free of checkpoint conventions."""

from __future__ import annotations

from dataclasses import dataclass

from ..targets.errors import InputError


@dataclass(frozen=True)
class VisionSpec:
    """A vision transformer over patches of any grid, with merged patches as image tokens."""

    depth: int
    hidden: int
    heads: int
    intermediate: int
    activation: str
    channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    positions: int  # entries of the square learned position table
    out_hidden: int
    deepstack_layers: tuple[int, ...]
    rope_theta: float
    norm_eps: float

    def __post_init__(self) -> None:
        side = round(self.positions**0.5)
        _require(side * side == self.positions, "num_position_embeddings", self.positions, "a square number")
        _require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        _require(self.head_dim % 4 == 0, "vision head size", self.head_dim, "a multiple of 4, for 2-D rotary angles")
        unknown = [i for i in self.deepstack_layers if not 0 <= i < self.depth]
        _require(not unknown, "deepstack_visual_indexes", unknown, f"layers below depth {self.depth}")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_hidden(self) -> int:
        return self.hidden * self.merge_size**2


@dataclass(frozen=True)
class DecoderSpec:
    """A causal decoder with grouped-query attention, qk-norm and interleaved M-RoPE."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    activation: str
    rope_theta: float
    mrope_section: tuple[int, int, int]
    norm_eps: float
    tied: bool
    attention_bias: bool
    context: int

    def __post_init__(self) -> None:
        _require(self.heads % self.kv_heads == 0, "num_attention_heads", self.heads, f"a multiple of {self.kv_heads}")
        half = self.head_dim // 2
        _require(sum(self.mrope_section) == half, "mrope_section", list(self.mrope_section), f"a sum of {half}")


@dataclass(frozen=True)
class ModelSpec:
    """Both halves of a model and the token that stands for an image feature."""

    family: str
    vision: VisionSpec
    decoder: DecoderSpec
    image_token_id: int
    video_token_id: int


def _require(ok: bool, key: str, found: object, expected: str) -> None:
    if not ok:
        raise InputError(f"config value {key} is {found}; expected {expected}")
