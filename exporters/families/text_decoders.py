"""Text decoders that come inside other models: llama, qwen2 and qwen3, with the defaults of transformers' classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...targets.errors import InputError
from ..graphs.rope import NO_SCALING, RopeScaling
from ..spec import DecoderSpec
from .configs import Config

# transformers writes only what differs from these.
COMMON = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
          "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}  # fmt: skip
QWEN = {**COMMON, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
        "num_key_value_heads": 32}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
}


def _optional_bias(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {"qkv_bias": bias, "output_bias": bias}


# What tells the architectures apart: the biases of attention and of the MLP, and the norms of queries and keys.
TRAITS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "llama": lambda config: _optional_bias(config) | {"qk_norm": False, "mlp_bias": bool(config.get("mlp_bias"))},
    "qwen2": lambda config: {"qkv_bias": True, "qk_norm": False},
    "qwen3": _optional_bias,
}


def describe_text(config: Config, default_type: str) -> DecoderSpec:
    """The decoder of a `text_config`; InputError names what is not supported. Tied as the section itself says."""
    kind = config.get("model_type", default_type)
    if kind not in DEFAULTS:
        raise InputError(f"config value text_config.model_type is {kind!r}, not supported for {config.model_type}; "
                         f"expected {', '.join(map(repr, DEFAULTS))}")  # fmt: skip
    config = replace(config, values={**DEFAULTS[kind], **config.values})
    _refuse_windows(config)
    config.only("is_causal", True)
    heads, hidden = config.need("num_attention_heads"), config.need("hidden_size")
    rope = config.rope()
    context = config.need("max_position_embeddings")
    rope.only("partial_rotary_factor", 1.0)
    return DecoderSpec(
        layers=config.need("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=config.need("intermediate_size"),
        vocab=config.need("vocab_size"),
        activation=config.activation("hidden_act", "silu", "swish"),
        rope_theta=float(rope.need("rope_theta")),
        mrope_section=None,
        norm_eps=config.need("rms_norm_eps"),
        tied=bool(config.get("tie_word_embeddings")),
        context=context,
        rope_scaling=_rope_scaling(rope, context),
        **TRAITS[kind](config),
    )


def _rope_scaling(rope: Config, context: int) -> RopeScaling:
    """How the frequencies are stretched; InputError for a kind that is not supported."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return NO_SCALING
    names = ("factor", "low_freq_factor", "high_freq_factor")
    values = {name: float(rope.get(name)) for name in names if rope.get(name) is not None}
    return RopeScaling(kind, original_context=rope.get("original_max_position_embeddings", context), **values)


def _refuse_windows(config: Config) -> None:
    """Layers that see only a window of the past; a `sliding_window` that is not in use may stand there."""
    if config.get("use_sliding_window"):
        config.only("use_sliding_window", False)
    others = sorted(set(config.get("layer_types", ())) - {"full_attention"})
    if others:
        raise InputError(f"config value layer_types is {others[0]!r}, not supported for {config.model_type}; "
                         "expected 'full_attention'")  # fmt: skip
