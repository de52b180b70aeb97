"""Synthetic checkpoints of SmolVLM: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import Architecture
from ...synth.synth_layouts import QWEN3_ENDS, QWEN3_LAYER, SynthTensor, Table, expand, text_sizes

# Heads of 64; tiles of 128 pixels, which are four image tokens each.
TINY_TEXT = {"hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 3, "num_key_value_heads": 1,
             "num_hidden_layers": 4}  # fmt: skip
TINY_VISION = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 4,
               "image_size": 128}  # fmt: skip
TINY_FILES: Mapping[str, Mapping[str, Any]] = {
    "preprocessor_config.json": {"size": {"longest_edge": 512}, "max_image_size": {"longest_edge": 128}},
    "processor_config.json": {"image_seq_len": 4},
}

LAYER: Table = {name: row for name, row in QWEN3_LAYER.items() if not name.endswith(("q_norm.weight", "k_norm.weight"))}
ENDS: Table = {
    "embeddings.patch_embedding.weight": ("linear", "hidden channels patch patch"),
    "embeddings.patch_embedding.bias": ("bias", "hidden"),
    "embeddings.position_embedding.weight": ("position", "positions hidden"),
    "post_layernorm.weight": ("norm", "hidden"),
    "post_layernorm.bias": ("bias", "hidden"),
}
VISION_LAYER: Table = {
    "layer_norm1.weight": ("norm", "hidden"),
    "layer_norm1.bias": ("bias", "hidden"),
    **{f"self_attn.{name}_proj.weight": (kind, "hidden hidden")
       for name, kind in (("q", "qk"), ("k", "qk"), ("v", "linear"), ("out", "linear"))},
    **{f"self_attn.{name}_proj.bias": ("bias", "hidden") for name in ("q", "k", "v", "out")},
    "layer_norm2.weight": ("norm", "hidden"),
    "layer_norm2.bias": ("bias", "hidden"),
    "mlp.fc1.weight": ("linear", "inner hidden"),
    "mlp.fc1.bias": ("bias", "inner"),
    "mlp.fc2.weight": ("residual", "hidden inner"),
    "mlp.fc2.bias": ("bias", "hidden"),
}  # fmt: skip
VISION_SIZES = {"num_hidden_layers": 12, "intermediate_size": 3072}  # that published files leave out


def smolvlm_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a SmolVLM checkpoint with a head of its own, by its published names."""
    text, vision = config["text_config"], {**VISION_SIZES, **config["vision_config"]}
    sizes = text_sizes(text)
    yield from expand("model.text_model.", QWEN3_ENDS, sizes)
    for layer in range(text["num_hidden_layers"]):
        yield from expand(f"model.text_model.layers.{layer}.", LAYER, sizes)
    yield from expand("", {"lm_head.weight": ("embedding", "vocab hidden")}, sizes)
    sizes = {
        "hidden": vision["hidden_size"], "inner": vision["intermediate_size"], "channels": 3,
        "patch": vision["patch_size"], "positions": (vision["image_size"] // vision["patch_size"]) ** 2,
        "shuffled": vision["hidden_size"] * config["scale_factor"] ** 2, "out": text["hidden_size"],
    }  # fmt: skip
    yield from expand("model.vision_model.", ENDS, sizes)
    for layer in range(vision["num_hidden_layers"]):
        yield from expand(f"model.vision_model.encoder.layers.{layer}.", VISION_LAYER, sizes)
    projection: Table = {"modality_projection.proj.weight": ("linear", "out shuffled")}
    yield from expand("model.connector.", projection, sizes)


SYNTH = {
    "smolvlm2-500m": Architecture(
        "smolvlm2-500m",
        smolvlm_tensors,
        {"text_config": TINY_TEXT, "vision_config": TINY_VISION},
        tiny_files=TINY_FILES,
    )
}
