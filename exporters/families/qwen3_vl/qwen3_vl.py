"""Qwen3-VL: its configuration and its two graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....runtimes.prompt.tokenizer_parts import PATTERNS
from ...graphs.dialect import Dialect
from ...graphs.graph_files import Graph, build_decoder, build_vision
from ...spec import DecoderSpec, QwenModelSpec
from ...storage.scheme import Policy
from .. import qwen_configs
from ..configs import Config, never_null
from ..family import Family
from ..prompts import sections
from ..qwen_configs import PREFIXES
from .qwen3_vl_gguf import GGUF
from .qwen3_vl_synth import SYNTH

MODEL_TYPE = "qwen3_vl"
DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128}  # of transformers' class, which writes what differs from them


def describe(values: dict[str, Any]) -> QwenModelSpec:
    """Turn a Hugging Face config of model_type qwen3_vl into a ModelSpec; InputError for what is not supported."""
    return qwen_configs.describe(Config(values, MODEL_TYPE, never_null=_never_null), qwen_configs.vision, _decoder)


def _never_null(config: Config) -> set[str]:
    """In a section `tie_word_embeddings` is one of the text alone, which nothing reads."""
    never = never_null(config) | {"deepstack_visual_indexes"}
    return never if "text_config" in config.values else never - {"tie_word_embeddings"}


def _decoder(config: Config, tied: bool) -> DecoderSpec:
    config = replace(config, values={**DEFAULTS, **config.values})
    rope = config.plain_rope()
    config.only("use_sliding_window", False)
    config.only("is_causal", True)
    heads = config.need("num_attention_heads")
    return DecoderSpec(
        layers=config.need("num_hidden_layers"),
        hidden=config.need("hidden_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config.need("hidden_size") // heads,
        intermediate=config.need("intermediate_size"),
        vocab=config.need("vocab_size"),
        activation=config.activation("hidden_act", "silu"),
        rope_theta=float(rope.get("rope_theta", 500000.0)),
        mrope_section=tuple(rope.get("mrope_section", (24, 20, 20))),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=tied,
        qkv_bias=bool(config.get("attention_bias", False)),
        output_bias=bool(config.get("attention_bias", False)),
        context=config.need("max_position_embeddings"),
    )


def graphs(spec: QwenModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    return tuple(build(spec, policy, dialect, PREFIXES, opsets) for build in (build_vision, build_decoder))


FAMILY = Family(
    name=MODEL_TYPE,
    describe=describe,
    prefixes=PREFIXES,
    depths=qwen_configs.depths,
    graphs=graphs,
    dropped=qwen_configs.dropped,
    sections=sections,
    conventions=replace(qwen_configs.CONVENTIONS, words=PATTERNS[2], named_tokenizer=True),
    gguf=GGUF,
    synth=SYNTH,
)
