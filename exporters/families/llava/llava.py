"""LLaVA: a CLIP tower, a projector and a text decoder; its configuration, its weight names and its two graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...checkpoint import names
from ...checkpoint.conventions import Conventions
from ...checkpoint.folder import Checkpoint
from ...graphs.dialect import Dialect
from ...graphs.graph_files import (
    Graph,
    Prefixes,
    build_clip,
    build_decoder,
)
from ...spec import ClipModelSpec, VisionLanguageSpec
from ...storage.scheme import Policy
from ...tower_specs import ClipTowerSpec
from ..configs import Config, never_null
from ..family import Family
from ..text_decoders import describe_text
from .llava_gguf import GGUF
from .llava_sections import sections
from .llava_synth import SYNTH

MODEL_TYPE = "llava"
PREFIXES = Prefixes(
    vision="model.vision_tower", text="model.language_model", head="lm_head", projector="model.multi_modal_projector"
)
NAMES = (
    names.HEAD,
    (r"(?:model\.)*vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
    (r"(?:model\.)*multi_modal_projector\.", "model.multi_modal_projector."),
    names.LANGUAGE,
    names.BARE_TEXT,
)
CLIP_DEFAULTS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
                 "layer_norm_eps": 1e-5}  # fmt: skip
# By type of decoder: values whose null its class refuses besides, and those whose null it does not.
TEXT_NULLS: dict[str, tuple[set[str], set[str]]] = {
    "llama": ({"mlp_bias"}, {"attention_dropout", "head_dim", "max_window_layers", "use_sliding_window"}),
    "qwen2": (set(), {"attention_bias"}),
}
TOWER_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new", "silu", "swish")
PROJECTOR_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "silu", "swish")


def describe(values: dict[str, Any]) -> ClipModelSpec:
    """Turn a Hugging Face config of model_type llava into a ModelSpec; InputError for what is not supported."""
    config = Config(values, MODEL_TYPE, never_null=_never_null)
    text = config.section("text_config")
    # transformers ties them when either of the two places says so.
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    decoder = describe_text(replace(text, values={**text.values, "tie_word_embeddings": tied}), "llama")
    token = config.get("image_token_index", config.get("image_token_id", 32000))
    return VisionLanguageSpec(MODEL_TYPE, _vision(config, decoder.hidden), decoder, int(token))


def _never_null(config: Config) -> set[str]:
    """Of its decoders, as their own classes take or ignore a value."""
    never = never_null(config) | {"model_type"}
    if not config.of_text:
        return never
    more, fewer = TEXT_NULLS.get(str(config.values.get("model_type", "llama")), (set(), set()))
    return (never | more) - fewer


def _vision(config: Config, out_hidden: int) -> ClipTowerSpec:
    section = config.section("vision_config")
    section.only("model_type", "clip_vision_model")
    vision = replace(section, values={**CLIP_DEFAULTS, **section.values})
    depth = vision.need("num_hidden_layers")
    # Behind how many layers the states are taken: index 0 is in front of the first, -1 behind the last.
    found = config.get("vision_feature_layer", -2)
    if found == 0:  # transformers cannot run it either: it takes the 0 for "no hidden states"
        config.only("vision_feature_layer", -2)
    given = [found] if isinstance(found, int) else found
    return ClipTowerSpec(
        hidden=vision.need("hidden_size"),
        heads=vision.need("num_attention_heads"),
        intermediate=vision.need("intermediate_size"),
        activation=vision.activation("hidden_act", *TOWER_ACTIVATIONS),
        channels=vision.need("num_channels"),
        image_size=vision.need("image_size"),
        patch_size=vision.need("patch_size"),
        norm_eps=vision.need("layer_norm_eps"),
        depth=depth,
        feature_depths=tuple(index if index >= 0 else depth + 1 + index for index in given),
        keep_class=config.only("vision_feature_select_strategy", "default", "full") == "full",
        out_hidden=out_hidden,
        projector_activation=config.activation("projector_hidden_act", *PROJECTOR_ACTIVATIONS),
        projector_bias=bool(config.get("multimodal_projector_bias", True)),
    )


def graphs(spec: ClipModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    return tuple(build(spec, policy, dialect, PREFIXES, opsets) for build in (build_clip, build_decoder))


def depths(spec: ClipModelSpec) -> dict[str, int]:
    """Layers by what the names of their tensors begin with."""
    assert spec.vision is not None
    layers = f"{PREFIXES.vision}.encoder.layers."
    return {f"{PREFIXES.text}.layers.": spec.decoder.layers, layers: spec.vision.used_depth}


def dropped(checkpoint: Checkpoint, spec: ClipModelSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason."""
    reasons = {name: _reason(name, spec) for name in checkpoint.tensors}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(name: str, spec: ClipModelSpec) -> str:
    vision = spec.vision
    inner = name.removeprefix(f"{PREFIXES.vision}.")
    if name == f"{PREFIXES.head}.weight" and spec.decoder.tied:
        return "tied to the embedding table"
    if name.endswith("rotary_emb.inv_freq"):
        return "rotary frequencies are computed from the configuration"
    if inner == name:
        return ""
    if inner.startswith("post_layernorm."):
        return "image features are taken in front of the last norm"
    if inner == "embeddings.position_ids":
        return "positions are counted"
    unused = {f"encoder.layers.{layer}" for layer in range(vision.used_depth, vision.depth)}
    if ".".join(inner.split(".")[:3]) in unused:
        return f"image features are taken behind layer {vision.used_depth} of {vision.depth}"
    return ""


FAMILY = Family(
    name=MODEL_TYPE,
    describe=describe,
    prefixes=PREFIXES,
    depths=depths,
    graphs=graphs,
    dropped=dropped,
    sections=sections,
    conventions=Conventions(names=NAMES, one_size=True),
    gguf=GGUF,
    synth=SYNTH,
)
