"""Qwen3-VL: its configuration, its weight names and its two graphs."""

from __future__ import annotations

from typing import Any

from ...targets.errors import InputError
from ..blocks import Dialect
from ..checkpoint import Checkpoint
from ..graphs import Graph, Prefixes, build_decoder, build_vision
from ..scheme import Policy
from ..spec import DecoderSpec, ModelSpec, VisionSpec

MODEL_TYPE = "qwen3_vl"
PREFIXES = Prefixes(vision="model.visual", text="model.language_model", head="lm_head")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}


def describe(config: dict[str, Any]) -> ModelSpec:
    """Turn a Hugging Face config of model_type qwen3_vl into a ModelSpec; InputError for what is not supported."""
    text, vision = _section(config, "text_config"), _section(config, "vision_config")
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    return ModelSpec(
        family=MODEL_TYPE,
        vision=_vision(vision),
        decoder=_decoder(text, tied),
        image_token_id=int(_need(config, "image_token_id")),
        video_token_id=int(_need(config, "video_token_id")),
    )


def _vision(config: dict[str, Any]) -> VisionSpec:
    return VisionSpec(
        depth=_need(config, "depth"),
        hidden=_need(config, "hidden_size"),
        heads=_need(config, "num_heads"),
        intermediate=_need(config, "intermediate_size"),
        activation=_activation(config, ("gelu_pytorch_tanh", "gelu")),
        channels=config.get("in_channels", 3),
        patch_size=_need(config, "patch_size"),
        temporal_patch_size=_need(config, "temporal_patch_size"),
        merge_size=_need(config, "spatial_merge_size"),
        positions=_need(config, "num_position_embeddings"),
        out_hidden=_need(config, "out_hidden_size"),
        deepstack_layers=tuple(config.get("deepstack_visual_indexes", ())),
        rope_theta=float((config.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
        norm_eps=1e-6,  # a constant of the architecture, not a config value
    )


def _decoder(config: dict[str, Any], tied: bool) -> DecoderSpec:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _only("rope_type", rope.get("rope_type", "default"), ("default",))
    _only("mrope_interleaved", rope.get("mrope_interleaved", True), (True,))
    _only("use_sliding_window", config.get("use_sliding_window", False), (False,))
    heads = _need(config, "num_attention_heads")
    head_dim = config.get("head_dim") or _need(config, "hidden_size") // heads
    return DecoderSpec(
        layers=_need(config, "num_hidden_layers"),
        hidden=_need(config, "hidden_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate=_need(config, "intermediate_size"),
        vocab=_need(config, "vocab_size"),
        activation=_activation(config, ("silu",)),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 5000000.0))),
        mrope_section=tuple(rope.get("mrope_section", (24, 20, 20))),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=tied,
        attention_bias=bool(config.get("attention_bias", False)),
        context=_need(config, "max_position_embeddings"),
    )


def graphs(spec: ModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    return tuple(build(spec, policy, dialect, PREFIXES, opsets) for build in (build_vision, build_decoder))


def dropped(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason."""
    unused = {}
    if spec.decoder.tied and f"{PREFIXES.head}.weight" in checkpoint.tensors:
        unused[f"{PREFIXES.head}.weight"] = "tied to the embedding table"
    for name in checkpoint.tensors:
        if name.endswith("rotary_emb.inv_freq"):
            unused[name] = "rotary frequencies are computed from the configuration"
    return unused


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise InputError(f"config.json has no {key}; expected the configuration of a Qwen3-VL checkpoint")
    return section


def _need(config: dict[str, Any], key: str) -> Any:
    if key not in config:
        raise InputError(f"config.json has no {key}; it is required for {MODEL_TYPE}")
    return config[key]


def _activation(config: dict[str, Any], supported: tuple[str, ...]) -> str:
    name = config.get("hidden_act", supported[0])
    _only("hidden_act", name, supported)
    return ACTIVATIONS[name]


def _only(key: str, found: object, supported: tuple[object, ...]) -> None:
    if found not in supported:
        allowed = ", ".join(map(repr, supported))
        raise InputError(f"config value {key} is {found!r}, not supported for {MODEL_TYPE}; expected {allowed}")
