"""Synthetic checkpoints of Qwen2-VL: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import Architecture
from ...synth.synth_layouts import QWEN3_ENDS, SynthTensor, Table, expand, text_sizes
from ..qwen2_5_vl.qwen2_5_vl_synth import LAYER, TINY_TEXT

TINY_VISION = {"embed_dim": 128, "mlp_ratio": 2, "num_heads": 2, "depth": 4, "hidden_size": 256}

VISION_BLOCK: Table = {
    "norm1.weight": ("norm", "hidden"),
    "norm1.bias": ("bias", "hidden"),
    "attn.qkv.weight": ("qkv", "qkv hidden"),
    "attn.qkv.bias": ("bias", "qkv"),
    "attn.proj.weight": ("attention_out", "hidden hidden"),
    "attn.proj.bias": ("bias", "hidden"),
    "norm2.weight": ("norm", "hidden"),
    "norm2.bias": ("bias", "hidden"),
    "mlp.fc1.weight": ("linear", "inner hidden"),
    "mlp.fc1.bias": ("bias", "inner"),
    "mlp.fc2.weight": ("residual", "hidden inner"),
    "mlp.fc2.bias": ("bias", "hidden"),
}
VISION_ENDS: Table = {
    "patch_embed.proj.weight": ("linear", "hidden channels frames patch patch"),
    "merger.ln_q.weight": ("norm", "hidden"),
    "merger.ln_q.bias": ("bias", "hidden"),
    "merger.mlp.0.weight": ("linear", "merged merged"),
    "merger.mlp.0.bias": ("bias", "merged"),
    "merger.mlp.2.weight": ("linear", "out merged"),
    "merger.mlp.2.bias": ("bias", "out"),
}


def qwen2_vl_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen2-VL checkpoint with tied embeddings, by its published names."""
    sizes = text_sizes({**config, "head_dim": config["hidden_size"] // config["num_attention_heads"]})
    yield from expand("model.", QWEN3_ENDS, sizes)
    for layer in range(config["num_hidden_layers"]):
        yield from expand(f"model.layers.{layer}.", LAYER, sizes)
    vision = config["vision_config"]
    hidden = vision["embed_dim"]
    sizes = {
        "hidden": hidden, "inner": hidden * vision["mlp_ratio"], "qkv": 3 * hidden, "out": vision["hidden_size"],
        "merged": hidden * vision["spatial_merge_size"] ** 2, "channels": 3, "frames": vision["temporal_patch_size"],
        "patch": vision["patch_size"],
    }  # fmt: skip
    yield from expand("visual.", VISION_ENDS, sizes)
    for block in range(vision["depth"]):
        yield from expand(f"visual.blocks.{block}.", VISION_BLOCK, sizes)


SYNTH = {"qwen2-vl-2b": Architecture("qwen2-vl-2b", qwen2_vl_tensors, {"": TINY_TEXT, "vision_config": TINY_VISION})}
