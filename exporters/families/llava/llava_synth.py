"""Synthetic checkpoints of LLaVA: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import TINY_QWEN3, Architecture
from ...synth.synth_layouts import SynthTensor, Table, expand, qwen3_text

TINY_CLIP = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 4,
             "projection_dim": 128}  # fmt: skip

CLIP_ENDS: Table = {
    "embeddings.class_embedding": ("bias", "hidden"),
    "embeddings.patch_embedding.weight": ("linear", "hidden channels patch patch"),
    "embeddings.position_embedding.weight": ("position", "positions hidden"),
    "pre_layrnorm.weight": ("norm", "hidden"),  # so spelt in the checkpoints
    "pre_layrnorm.bias": ("bias", "hidden"),
    "post_layernorm.weight": ("norm", "hidden"),
    "post_layernorm.bias": ("bias", "hidden"),
}
CLIP_LAYER: Table = {
    "layer_norm1.weight": ("norm", "hidden"),
    "layer_norm1.bias": ("bias", "hidden"),
    **{f"self_attn.{name}_proj.weight": (kind, "hidden hidden")
       for name, kind in (("q", "qk"), ("k", "qk"), ("v", "linear"), ("out", "attention_out"))},
    **{f"self_attn.{name}_proj.bias": ("bias", "hidden") for name in ("q", "k", "v", "out")},
    "layer_norm2.weight": ("norm", "hidden"),
    "layer_norm2.bias": ("bias", "hidden"),
    "mlp.fc1.weight": ("linear", "inner hidden"),
    "mlp.fc1.bias": ("bias", "inner"),
    "mlp.fc2.weight": ("residual", "hidden inner"),
    "mlp.fc2.bias": ("bias", "hidden"),
}  # fmt: skip
LLAVA_PROJECTOR: Table = {
    "linear_1.weight": ("linear", "out hidden"),
    "linear_1.bias": ("bias", "out"),
    "linear_2.weight": ("linear", "out out"),
    "linear_2.bias": ("bias", "out"),
}


def llava_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a LLaVA checkpoint of a CLIP tower and a Qwen3 decoder with tied embeddings."""
    vision, tower = config["vision_config"], "vision_tower.vision_model."
    sizes = {
        "hidden": vision["hidden_size"], "inner": vision["intermediate_size"], "channels": vision["num_channels"],
        "patch": vision["patch_size"], "positions": (vision["image_size"] // vision["patch_size"]) ** 2 + 1,
        "out": config["text_config"]["hidden_size"],
    }  # fmt: skip
    yield from expand(tower, CLIP_ENDS, sizes)
    for layer in range(vision["num_hidden_layers"]):
        yield from expand(f"{tower}encoder.layers.{layer}.", CLIP_LAYER, sizes)
    yield from expand("multi_modal_projector.", LLAVA_PROJECTOR, sizes)
    yield from qwen3_text("language_model.model.", config["text_config"])


SYNTH = {"vqwen3-4b": Architecture("vqwen3-4b", llava_tensors, {"text_config": TINY_QWEN3, "vision_config": TINY_CLIP})}
