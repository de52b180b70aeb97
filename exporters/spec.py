"""What a vision-language model is, in our own names: frozen, validated, free of checkpoint conventions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

from ..targets.errors import InputError
from .graphs.rope import NO_SCALING, RopeScaling

NO_TOKEN = -1  # no prompt has it


class Tower(Protocol):
    """What is asked of any vision encoder outside of its family."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def merge_size(self) -> int: ...  # patches a side of one image token
    @property
    def out_hidden(self) -> int: ...
    @property
    def deepstack_layers(self) -> tuple[int, ...]: ...
    @property
    def used_depth(self) -> int: ...  # layers that the features depend on
    @property
    def biased(self) -> bool: ...  # attention adds a bias for each pair of patches


class Spec(Protocol):
    """What is asked of any model outside of its family: an encoder alone has no decoder, a model of text no tower."""

    @property
    def family(self) -> str: ...
    @property
    def vision(self) -> Tower | None: ...
    @property
    def decoder(self) -> DecoderSpec | None: ...
    @property
    def context(self) -> int: ...  # most tokens, or most patches of an encoder alone
    @property
    def revision(self) -> str | None: ...  # of the class that computes it, where a family has several

    def limited(self, context: int | None) -> Self: ...
    def revised(self, revision: str | None) -> Self: ...


@dataclass(frozen=True)
class PatchTransformer:
    """What all vision transformers over patches of images and clips have."""

    depth: int
    hidden: int
    heads: int
    intermediate: int
    activation: str
    channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int

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

    @property
    def used_depth(self) -> int:
        """Layers that the features depend on: all."""
        return self.depth

    @property
    def biased(self) -> bool:
        """Whether attention adds a bias for each pair of patches."""
        return False


@dataclass(frozen=True)
class VisionSpec(PatchTransformer):
    """A vision transformer over patches of any grid, with merged patches as image tokens."""

    positions: int  # entries of the square learned position table
    out_hidden: int
    deepstack_layers: tuple[int, ...]
    rope_theta: float
    norm_eps: float

    def __post_init__(self) -> None:
        side = round(self.positions**0.5)
        require(side * side == self.positions, "num_position_embeddings", self.positions, "a square number")
        require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        require(self.head_dim % 4 == 0, "vision head size", self.head_dim, "a multiple of 4, for 2-D rotary angles")
        unknown = [i for i in self.deepstack_layers if not 0 <= i < self.depth]
        require(not unknown, "deepstack_visual_indexes", unknown, f"layers below depth {self.depth}")


@dataclass(frozen=True)
class DeltaNetSpec:
    """Linear attention by the gated delta rule behind a short causal convolution: a state of fixed size, no cache.

    Queries and keys have `key_heads` heads of `key_dim`; each serves as many consecutive value heads of `value_dim`.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int  # taps of the convolution

    def __post_init__(self) -> None:
        heads = self.key_heads
        require(self.value_heads % heads == 0, "linear_num_value_heads", self.value_heads, f"a multiple of {heads}")
        require(self.kernel >= 2, "linear_conv_kernel_dim", self.kernel, "at least 2")

    @property
    def keys(self) -> int:
        """Width of all keys, and of all queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def mixed(self) -> int:
        """Width of queries, keys and values together, which the convolution sees."""
        return 2 * self.keys + self.values


@dataclass(frozen=True)
class ClipTowerSpec:
    """A CLIP vision transformer for images of one size, whose states become image tokens through a projector."""

    hidden: int
    heads: int
    intermediate: int
    activation: str
    channels: int
    image_size: int  # pixels a side
    patch_size: int
    norm_eps: float
    depth: int  # layers of the checkpoint
    feature_depths: tuple[int, ...]  # behind how many layers the states are taken; several are joined
    keep_class: bool  # whether the class token becomes an image token too
    out_hidden: int
    projector_activation: str
    projector_bias: bool
    merge_size: int = 1
    deepstack_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        require(self.channels == 3, "num_channels", self.channels, "3, for RGB")
        require(0 < self.patch_size <= self.image_size, "patch_size", self.patch_size, f"up to {self.image_size}")
        beyond = [depth for depth in self.feature_depths if not 0 <= depth <= self.depth]
        require(not beyond, "vision_feature_layer", beyond, f"layers up to {self.depth}")
        require(bool(self.feature_depths), "vision_feature_layer", [], "a layer or a list of layers")

    @property
    def side(self) -> int:
        """Patches a side; pixels behind the last whole patch are not seen."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return self.channels * self.patch_size**2

    @property
    def used_depth(self) -> int:
        """Layers that the features depend on."""
        return max(self.feature_depths)

    @property
    def biased(self) -> bool:
        """Whether attention adds a bias for each pair of patches."""
        return False

    @property
    def image_tokens(self) -> int:
        """Of each image."""
        return self.side**2 + int(self.keep_class)


@dataclass(frozen=True)
class DecoderSpec:
    """A causal decoder with grouped-query attention and a gated MLP; some layers may be a delta net."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    activation: str
    rope_theta: float
    mrope_section: tuple[int, int, int] | None  # None: one position for each token
    norm_eps: float
    tied: bool
    context: int
    mrope_interleaved: bool = True  # False: time turns the first frequencies, then height, then width
    qk_norm: bool = True
    qkv_bias: bool = False
    output_bias: bool = False  # of the projection behind attention
    mlp_bias: bool = False
    rope_scaling: RopeScaling = NO_SCALING
    rotary_dim: int | None = None  # leading values of each head that turn with the position; None: all
    norm_offset: float = 0.0  # added to the weights of RMS norms: 1 where the checkpoint stores them around zero
    output_gate: bool = False  # q_proj also gives a gate of the attention's output, behind the query of each head
    delta_net: DeltaNetSpec | None = None
    linear_layers: frozenset[int] = frozenset()  # with the delta net in place of attention
    mtp: bool = False  # a multi-token-prediction head lies behind the decoder

    def __post_init__(self) -> None:
        require(self.heads % self.kv_heads == 0, "num_attention_heads", self.heads, f"a multiple of {self.kv_heads}")
        require(self.head_dim % 2 == 0 and self.head_dim > 0, "head_dim", self.head_dim, "an even number")
        half = self.rotated // 2
        if self.mrope_section is not None:
            require(sum(self.mrope_section) == half, "mrope_section", list(self.mrope_section), f"a sum of {half}")

    @property
    def rotated(self) -> int:
        """Values of each head that turn with the position."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim


@dataclass(frozen=True)
class ModelSpec:
    """Both halves of a model and the token that stands for an image feature; a model of text alone has one half."""

    family: str
    vision: Tower | None
    decoder: DecoderSpec
    image_token_id: int = NO_TOKEN
    video_token_id: int | None = None

    @property
    def revision(self) -> None:
        """None: the family has no revisions."""
        return None

    @property
    def taps(self) -> int:
        """Layers of the vision encoder whose states the decoder takes besides the image features."""
        return 0 if self.vision is None else len(self.vision.deepstack_layers)

    @property
    def merge_size(self) -> int:
        """Patches a side of one image token."""
        return 1 if self.vision is None else self.vision.merge_size

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer."""
        return self.decoder.context

    def limited(self, context: int | None) -> Self:
        """With a shorter context; InputError for more tokens than the model was made for."""
        context = self.context if context is None else context
        if not 0 < context <= self.context:
            raise InputError(f"context {context} is outside the model's range of 1 to {self.context} tokens")
        return replace(self, decoder=replace(self.decoder, context=context))

    def revised(self, revision: str | None) -> Self:
        """Itself: the family has no revisions. InputError for a wish."""
        if revision is not None:
            raise InputError(f"{self.family} has no revisions; leave out --revision {revision}")
        return self


def require(ok: bool, key: str, found: object, expected: str) -> None:
    """InputError that names a config value, unless it is as expected."""
    if not ok:
        raise InputError(f"config value {key} is {found}; expected {expected}")
