"""What the Qwen families read from config.json in the same way; every refused value is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..checkpoint.conventions import QWEN_TOKENS, Conventions
from ..checkpoint.folder import Checkpoint
from ..checkpoint.names import QWEN
from ..graphs.graph_files import Prefixes
from ..spec import DecoderSpec, ModelSpec, QwenModelSpec, VisionLanguageSpec
from ..tower_specs import VisionSpec
from .configs import Config

CONVENTIONS = Conventions(names=QWEN, special_tokens=QWEN_TOKENS)
PREFIXES = Prefixes(vision="model.visual", text="model.language_model", head="lm_head")


def describe(
    config: Config, vision: Callable[[Config], VisionSpec], decoder: Callable[[Config, bool], DecoderSpec]
) -> QwenModelSpec:
    """A whole config.json, with what a family makes of its sections; `decoder` is told whether its table is tied."""
    return VisionLanguageSpec(
        family=config.model_type,
        vision=vision(config.section("vision_config")),
        decoder=decoder(config.section("text_config"), config.only("tie_word_embeddings", False, True)),
        image_token_id=int(config.need("image_token_id")),
        video_token_id=int(config.need("video_token_id")),
    )


def vision(config: Config) -> VisionSpec:
    """The vision section of Qwen3-VL and Qwen3.5."""
    rope = config.rope()
    rope.only("rope_type", "default", "axial")
    check_names(config)
    return VisionSpec(
        depth=config.need("depth"),
        hidden=config.need("hidden_size"),
        heads=config.need("num_heads"),
        intermediate=config.need("intermediate_size"),
        activation=config.activation("hidden_act", "gelu_pytorch_tanh", "gelu"),
        channels=config.get("in_channels", 3),
        patch_size=config.need("patch_size"),
        temporal_patch_size=config.need("temporal_patch_size"),
        merge_size=config.need("spatial_merge_size"),
        positions=config.need("num_position_embeddings"),
        out_hidden=config.need("out_hidden_size"),
        deepstack_layers=tuple(config.get("deepstack_visual_indexes", ())),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        norm_eps=1e-6,  # a constant of the architecture, not a config value
    )


def check_names(config: Config) -> None:
    """InputError where a vision section has layers or heads by a second name, which transformers' classes obey."""
    config.only("num_hidden_layers", config.need("depth"))
    config.only("num_attention_heads", config.need("num_heads"))


def depths(spec: VisionLanguageSpec[Any]) -> dict[str, int]:
    """Layers by what the names of their tensors begin with."""
    return {f"{PREFIXES.text}.layers.": spec.decoder.layers, f"{PREFIXES.vision}.blocks.": spec.vision.used_depth}


def dropped(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason."""
    unused = {}
    if spec.decoder.tied and f"{PREFIXES.head}.weight" in checkpoint.tensors:
        unused[f"{PREFIXES.head}.weight"] = "tied to the embedding table"
    for name in checkpoint.tensors:
        if name.endswith("rotary_emb.inv_freq"):
            unused[name] = "rotary frequencies are computed from the configuration"
    return unused
