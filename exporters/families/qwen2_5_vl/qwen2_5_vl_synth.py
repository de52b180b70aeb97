"""Synthetic checkpoints of Qwen2.5-VL: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import TINY_QWEN3, Architecture
from ...synth.synth_layouts import QWEN3_ENDS, QWEN3_LAYER, SynthTensor, Table, expand, text_sizes

TINY_VISION = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "depth": 4, "out_hidden_size": 256,
               "fullatt_block_indexes": [1, 3]}  # fmt: skip
# Heads of 64: a quarter of the frequencies turns with time.
TINY_TEXT = TINY_QWEN3 | {"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}, "max_window_layers": 4}

LAYER: Table = {
    **{name: row for name, row in QWEN3_LAYER.items() if not name.endswith(("q_norm.weight", "k_norm.weight"))},
    **{
        f"self_attn.{name}_proj.bias": ("position", size) for name, size in (("q", "query"), ("k", "key"), ("v", "key"))
    },
}
VISION_BLOCK: Table = {
    "norm1.weight": ("norm", "hidden"),
    "attn.qkv.weight": ("qkv", "qkv hidden"),
    "attn.qkv.bias": ("bias", "qkv"),
    "attn.proj.weight": ("attention_out", "hidden hidden"),
    "attn.proj.bias": ("bias", "hidden"),
    "norm2.weight": ("norm", "hidden"),
    "mlp.gate_proj.weight": ("linear", "inner hidden"),
    "mlp.gate_proj.bias": ("bias", "inner"),
    "mlp.up_proj.weight": ("linear", "inner hidden"),
    "mlp.up_proj.bias": ("bias", "inner"),
    "mlp.down_proj.weight": ("residual", "hidden inner"),
    "mlp.down_proj.bias": ("bias", "hidden"),
}
VISION_ENDS: Table = {
    "patch_embed.proj.weight": ("linear", "hidden channels frames patch patch"),
    "merger.ln_q.weight": ("norm", "hidden"),
    "merger.mlp.0.weight": ("linear", "merged merged"),
    "merger.mlp.0.bias": ("bias", "merged"),
    "merger.mlp.2.weight": ("linear", "out merged"),
    "merger.mlp.2.bias": ("bias", "out"),
}


def qwen2_5_vl_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen2.5-VL checkpoint with tied embeddings, by its published names."""
    sizes = text_sizes({**config, "head_dim": config["hidden_size"] // config["num_attention_heads"]})
    yield from expand("model.", QWEN3_ENDS, sizes)
    for layer in range(config["num_hidden_layers"]):
        yield from expand(f"model.layers.{layer}.", LAYER, sizes)
    vision = config["vision_config"]
    hidden = vision["hidden_size"]
    sizes = {
        "hidden": hidden, "inner": vision["intermediate_size"], "qkv": 3 * hidden, "out": vision["out_hidden_size"],
        "merged": hidden * vision["spatial_merge_size"] ** 2, "channels": 3, "frames": vision["temporal_patch_size"],
        "patch": vision["patch_size"],
    }  # fmt: skip
    yield from expand("visual.", VISION_ENDS, sizes)
    for block in range(vision["depth"]):
        yield from expand(f"visual.blocks.{block}.", VISION_BLOCK, sizes)


SYNTH = {
    "qwen2.5-vl-3b": Architecture("qwen2.5-vl-3b", qwen2_5_vl_tensors, {"": TINY_TEXT, "vision_config": TINY_VISION})
}
