"""Qwen3.5: its configuration and its graphs, the last of them where the checkpoint has multi-token prediction."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ....runtimes.prompt.tokenizer_parts import PATTERNS
from ....targets.errors import InputError
from ...checkpoint import names
from ...checkpoint.folder import Checkpoint
from ...evidence.recording import record
from ...graphs.dialect import Dialect
from ...graphs.graph_files import (
    Graph,
    build_decoder,
    build_mtp,
    build_vision,
)
from ...spec import DecoderSpec, DeltaNetSpec, ModelSpec, QwenModelSpec
from ...storage.scheme import Policy
from ...tower_specs import VisionSpec
from .. import qwen_configs
from ..configs import Config
from ..family import Family
from ..prompts import sections, text_sections
from ..qwen_configs import PREFIXES
from .draft_reference import DraftReference
from .qwen3_5_gguf import GGUF, TEXT_GGUF
from .qwen3_5_synth import SYNTH

MODEL_TYPE = "qwen3_5"
TEXT_MODEL_TYPE = "qwen3_5_text"  # of Qwen3_5ForCausalLM, the decoder alone
TEXT_PREFIXES = replace(PREFIXES, text="model")
TEXT_NAMES = (
    names.HEAD,
    names.MTP,
    (r"(?:model\.)*visual\.", "model.visual."),
    (rf"(?:model\.)*(?:language_model\.)?(?:model\.)?{names.TEXT}", "model."),
)
LINEAR, FULL = "linear_attention", "full_attention"
HEAD_DIM = 256  # where the configuration does not say, as in transformers' class
INTERVAL = 4  # of full attention layers, where the configuration does not say
# What lensmith has one way to do, by key of text_config; the value is the default too.
FIXED = {"attn_output_gate": True, "mlp_only_layers": [], "mtp_use_dedicated_embeddings": False,
         "mamba_ssm_dtype": "float32", "use_sliding_window": False, "is_causal": True}  # fmt: skip


M = TypeVar("M", bound=ModelSpec)


def describe(values: dict[str, Any]) -> QwenModelSpec:
    """Turn a Hugging Face config of model_type qwen3_5 into a ModelSpec; InputError for what is not supported."""
    return qwen_configs.describe(Config(values, MODEL_TYPE), _vision, _decoder)


def describe_text(values: dict[str, Any]) -> ModelSpec:
    """The same for model_type qwen3_5_text, whose config.json is the text section of the others."""
    config = Config(values, TEXT_MODEL_TYPE, of_text=True)
    return ModelSpec(TEXT_MODEL_TYPE, None, _decoder(config, config.only("tie_word_embeddings", False, True)))


def _vision(config: Config) -> VisionSpec:
    """Qwen3-VL's vision encoder without DeepStack."""
    if config.get("deepstack_visual_indexes"):
        found = config.get("deepstack_visual_indexes")
        raise InputError(f"config value deepstack_visual_indexes is {found}, not supported for {MODEL_TYPE}; "
                         "expected an empty list")  # fmt: skip
    return qwen_configs.vision(config)


def _decoder(config: Config, tied: bool) -> DecoderSpec:
    for key, value in FIXED.items():
        config.only(key, value)
    rope, heads = config.plain_rope(), config.need("num_attention_heads")
    head_dim = config.get("head_dim", HEAD_DIM)
    kinds = _layer_kinds(config)
    return DecoderSpec(
        layers=len(kinds),
        hidden=config.need("hidden_size"),
        heads=heads,
        kv_heads=config.need("num_key_value_heads"),
        head_dim=head_dim,
        intermediate=config.need("intermediate_size"),
        vocab=config.need("vocab_size"),
        activation=config.activation("hidden_act", "silu"),
        rope_theta=float(rope.need("rope_theta")),
        mrope_section=tuple(rope.get("mrope_section", (11, 11, 10))),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=tied,
        qkv_bias=bool(config.get("attention_bias", False)),
        output_bias=bool(config.get("attention_bias", False)),
        context=config.need("max_position_embeddings"),
        rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 0.25)),
        norm_offset=1.0,
        output_gate=True,
        delta_net=_delta_net(config) if LINEAR in kinds else None,
        linear_layers=frozenset(layer for layer, kind in enumerate(kinds) if kind == LINEAR),
        mtp=config.only("mtp_num_hidden_layers", 0, 1) == 1,
    )


def _layer_kinds(config: Config) -> list[str]:
    """The kind of each layer: as listed, or full attention at every full_attention_interval-th."""
    layers, interval = config.need("num_hidden_layers"), config.get("full_attention_interval", INTERVAL)
    kinds = config.get("layer_types") or [LINEAR if (layer + 1) % interval else FULL for layer in range(layers)]
    unknown = sorted(set(map(str, kinds)) - {LINEAR, FULL})
    if unknown or len(kinds) != layers:
        found = f"has {unknown[0]!r}" if unknown else f"has {len(kinds)} entries"
        raise InputError(f"config value layer_types {found}; expected {layers} of {LINEAR!r} and {FULL!r}")
    return list(kinds)


def _delta_net(config: Config) -> DeltaNetSpec:
    return DeltaNetSpec(
        key_heads=config.need("linear_num_key_heads"),
        value_heads=config.need("linear_num_value_heads"),
        key_dim=config.need("linear_key_head_dim"),
        value_dim=config.need("linear_value_head_dim"),
        kernel=config.need("linear_conv_kernel_dim"),
    )


def fit(spec: M, checkpoint: Checkpoint) -> M:
    """Without multi-token prediction where the weights lack it: fine-tuning with transformers drops these tensors."""
    there = any(name.startswith(f"{PREFIXES.mtp}.") for name in checkpoint.tensors)
    return replace(spec, decoder=replace(spec.decoder, mtp=spec.decoder.mtp and there))


def graphs(spec: QwenModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    encoder, decoder = (build(spec, policy, dialect, PREFIXES, opsets) for build in (build_vision, build_decoder))
    if not spec.decoder.mtp:
        return encoder, decoder
    return encoder, decoder, build_mtp(spec, policy, dialect, PREFIXES, opsets, decoder)


def text_graphs(spec: ModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of a model without images."""
    decoder = build_decoder(spec, policy, dialect, TEXT_PREFIXES, opsets)
    return (
        (decoder, build_mtp(spec, policy, dialect, TEXT_PREFIXES, opsets, decoder)) if spec.decoder.mtp else (decoder,)
    )


def text_depths(spec: ModelSpec) -> dict[str, int]:
    """Layers by what the names of their tensors begin with."""
    return {f"{TEXT_PREFIXES.text}.layers.": spec.decoder.layers}


def text_dropped(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, str]:
    """The same for a model without images; the files may hold the vision encoder that goes with it."""
    of_vision = (name for name in checkpoint.tensors if name.startswith(f"{PREFIXES.vision}."))
    return dropped(checkpoint, spec) | dict.fromkeys(of_vision, "model_type qwen3_5_text has no vision encoder")


def dropped(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason."""
    unused = qwen_configs.dropped(checkpoint, spec)
    if not spec.decoder.mtp:
        reason = "config.json has no multi-token prediction (mtp_num_hidden_layers)"
        unused |= {name: reason for name in checkpoint.tensors if name.startswith(f"{PREFIXES.mtp}.")}
    return unused


CONVENTIONS = replace(qwen_configs.CONVENTIONS, words=PATTERNS[3])
FAMILY = Family(
    name=MODEL_TYPE,
    describe=describe,
    prefixes=PREFIXES,
    depths=qwen_configs.depths,
    graphs=graphs,
    dropped=dropped,
    sections=sections,
    conventions=CONVENTIONS,
    gguf=GGUF,
    synth=SYNTH,
    record=partial(record, open_head=DraftReference),
    fit=fit,
)
TEXT_FAMILY = Family(
    name=TEXT_MODEL_TYPE,
    describe=describe_text,
    prefixes=TEXT_PREFIXES,
    depths=text_depths,
    graphs=text_graphs,
    dropped=text_dropped,
    sections=text_sections,
    conventions=replace(CONVENTIONS, names=TEXT_NAMES, text_only=True),
    gguf=TEXT_GGUF,
    record=partial(record, open_head=DraftReference),
    fit=fit,
)
