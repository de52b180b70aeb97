"""Reading config.json: each value by one table of kinds, with defaults, and clear refusals that name the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...targets.errors import InputError

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "silu": "silu",
               "swish": "silu", "quick_gelu": "quick_gelu"}  # fmt: skip


@dataclass(frozen=True)
class ValueKind:
    """What a value may be, and how messages say so."""

    words: str
    fits: Callable[[Any], bool]


def whole(least: int, most: int) -> ValueKind:
    """A whole number in a range, both ends included."""
    return ValueKind(
        f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most
    )


def number(above: float, most: float) -> ValueKind:
    """A number in a range without its lower end."""
    return ValueKind(
        f"a number above {above:g}, up to {most:g}",
        lambda value: type(value) in (int, float) and above < value <= most,
    )


def some(kind: ValueKind, most: int) -> ValueKind:
    """A list of values of one kind."""

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) <= most and all(map(kind.fits, value))

    return ValueKind(f"a list of up to {most}, each {kind.words}", fits)


def either(one: ValueKind, other: ValueKind) -> ValueKind:
    """A value of one of two kinds."""
    return ValueKind(f"{one.words}, or {other.words}", lambda value: one.fits(value) or other.fits(value))


FLAG = ValueKind("true or false", lambda value: type(value) is bool)
TEXT = ValueKind("a short text", lambda value: isinstance(value, str) and len(value) < 100)
OBJECT = ValueKind("an object", lambda value: isinstance(value, dict))
SIZE, LAYERS, HEADS, TOKEN = whole(1, 1 << 20), whole(1, 1024), whole(1, 1 << 14), whole(0, 1 << 24)
DEPTH, PIXELS, POSITIVE = whole(-1024, 1024), whole(1, 4096), number(0, 1e18)

# Of every value that lensmith reads, in whichever part of config.json it stands.
KINDS: Mapping[str, ValueKind] = {
    "model_type": TEXT, "text_config": OBJECT, "vision_config": OBJECT, "tie_word_embeddings": FLAG,
    "image_token_id": TOKEN, "image_token_index": TOKEN, "video_token_id": TOKEN,
    "hidden_size": SIZE, "intermediate_size": SIZE, "out_hidden_size": SIZE, "vocab_size": whole(1, 1 << 24),
    "num_hidden_layers": LAYERS, "depth": LAYERS, "max_position_embeddings": whole(1, (1 << 31) - 1),
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "num_heads": HEADS, "head_dim": HEADS,
    "hidden_act": TEXT, "rms_norm_eps": number(0, 1), "layer_norm_eps": number(0, 1),
    "attention_bias": FLAG, "mlp_bias": FLAG, "is_causal": FLAG, "use_sliding_window": FLAG, "attn_output_gate": FLAG,
    "layer_types": some(TEXT, 1024), "full_attention_interval": LAYERS, "mlp_only_layers": some(DEPTH, 1024),
    "linear_num_key_heads": HEADS, "linear_num_value_heads": HEADS, "linear_key_head_dim": HEADS,
    "linear_value_head_dim": HEADS, "linear_conv_kernel_dim": whole(2, 64), "mamba_ssm_dtype": TEXT,
    "mtp_num_hidden_layers": whole(0, 1024), "mtp_use_dedicated_embeddings": FLAG,
    "rope_parameters": OBJECT, "rope_scaling": OBJECT, "rope_theta": POSITIVE, "partial_rotary_factor": number(0, 1),
    "rope_type": TEXT, "type": TEXT, "mrope_interleaved": FLAG, "mrope_section": some(whole(0, 1 << 14), 3),
    "factor": POSITIVE, "low_freq_factor": POSITIVE, "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": whole(1, (1 << 31) - 1),
    "in_channels": whole(1, 64), "num_channels": whole(1, 64), "patch_size": PIXELS, "image_size": PIXELS,
    "temporal_patch_size": whole(1, 64), "spatial_merge_size": whole(1, 64),
    "num_position_embeddings": whole(1, 1 << 24), "deepstack_visual_indexes": some(whole(0, 1023), 1024),
    "projector_hidden_act": TEXT, "multimodal_projector_bias": FLAG, "vision_feature_select_strategy": TEXT,
    "vision_feature_layer": either(DEPTH, some(DEPTH, 64)),
}  # fmt: skip

# Values that transformers does not take null for, though it has defaults for most of them where they are missing.
NEVER_NULL = """
    attention_bias head_dim hidden_act image_seq_length image_token_index in_channels initializer_factor
    initializer_range max_window_layers multimodal_projector_bias partial_rotary_factor projection_dim
    projector_hidden_act rms_norm_eps rope_theta tie_word_embeddings use_cache use_sliding_window vision_end_token_id
    vision_feature_layer vision_feature_select_strategy vision_start_token_id
"""
BESIDE_ROPE = ("rope_theta", "partial_rotary_factor")  # that older configurations have outside of the rotary parameters


def never_null(config: Config) -> set[str]:
    """Keys of a section for whose null there is an InputError; families have others besides, or fewer."""
    return {*NEVER_NULL.split(), *(("attention_dropout",) if config.of_text else ())}


@dataclass(frozen=True)
class Config:
    """A section of config.json, and the model_type that messages name."""

    values: dict[str, Any]
    model_type: str
    of_text: bool = False  # whether it is the decoder's section
    kinds: Mapping[str, ValueKind] = field(default_factory=dict)  # of values that one family alone has
    never_null: Callable[[Config], set[str]] = never_null

    def __post_init__(self) -> None:
        never = self.never_null(self)
        for key in never & self.values.keys():
            if self.values[key] is None:
                raise InputError(f"config value {key} is null, which transformers refuses; leave it out")

    def section(self, key: str) -> Config:
        """A part of this section; InputError when it is not there."""
        if self.values.get(key) is None:
            raise InputError(f"config.json has no {key}; expected the configuration of a {self.model_type} checkpoint")
        return replace(self, values=self.get(key), of_text=key == "text_config")

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or `default` where there is none or null; InputError for a value that is not of its kind."""
        found, kind = self.values.get(key), {**KINDS, **self.kinds}[key]
        if found is not None and not kind.fits(found):
            raise InputError(f"config value {key} is {str(found)[:100]!r}; expected {kind.words}")
        return default if found is None else found

    def need(self, key: str) -> Any:
        """A value; InputError when there is none."""
        if self.values.get(key) is None:
            raise InputError(f"config.json has no {key}; it is required for {self.model_type}")
        return self.get(key)

    def only(self, key: str, *supported: object) -> Any:
        """A value among those that are supported, the first when there is none; InputError for others."""
        found = self.get(key, supported[0])
        if found not in supported:
            allowed = ", ".join(map(repr, supported))
            raise InputError(
                f"config value {key} is {found!r}, not supported for {self.model_type}; expected {allowed}"
            )
        return found

    def activation(self, key: str, *supported: str) -> str:
        """Our name of an activation function."""
        return ACTIVATIONS[self.only(key, *supported)]

    def rope(self) -> Config:
        """The rotary parameters, completed as by transformers: the older name counts first, and values beside it last.

        InputError for parameters by kind of layer, which none of the models has.
        """
        older, newer = self.get("rope_scaling"), self.get("rope_parameters")
        section = older or newer or {}
        nested = next((key for key, value in section.items() if isinstance(value, dict)), None)
        if nested is not None:
            raise InputError(f"config.json has rotary parameters of {nested[:100]!r} alone, not supported for "
                             f"{self.model_type}; expected the same ones for all layers")  # fmt: skip
        beside = {key: self.get(key) for key in BESIDE_ROPE if self.get(key) is not None}
        values = {"rope_type": section.get("type", "default"), **beside, **section}
        return replace(self, values=values, of_text=False)

    def plain_rope(self) -> Config:
        """The same for models whose frequencies nothing stretches."""
        rope = self.rope()
        rope.only("rope_type", "default")
        rope.only("mrope_interleaved", True)
        return rope
