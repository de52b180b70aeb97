"""What a vision-language model is, in our own names: frozen, validated, free of checkpoint conventions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from ..targets.errors import InputError
from .config_errors import require
from .graphs.rope import NO_SCALING, RopeScaling
from .tower_specs import ClipTowerSpec, Tower, VisionSpec

NO_TOKEN = -1  # no prompt has it
V = TypeVar("V", bound="Tower")


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


@dataclass(frozen=True)
class VisionLanguageSpec(ModelSpec, Generic[V]):
    """The same of a model that has a tower of one kind."""

    vision: V


QwenModelSpec: TypeAlias = VisionLanguageSpec[VisionSpec]
ClipModelSpec: TypeAlias = VisionLanguageSpec[ClipTowerSpec]
