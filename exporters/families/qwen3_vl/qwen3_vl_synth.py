"""Synthetic checkpoints of Qwen3-VL: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import TINY_QWEN3, Architecture
from ...synth.synth_layouts import SynthTensor, Table, expand, qwen3_text

TINY_QWEN_VISION = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "depth": 4, "out_hidden_size": 256,
                    "deepstack_visual_indexes": [0, 1, 2]}  # fmt: skip

QWEN_VISION_ENDS: Table = {
    "patch_embed.proj.weight": ("linear", "hidden channels frames patch patch"),
    "patch_embed.proj.bias": ("bias", "hidden"),
    "pos_embed.weight": ("position", "positions hidden"),
}
QWEN_VISION_BLOCK: Table = {
    "norm1.weight": ("norm", "hidden"),
    "norm1.bias": ("bias", "hidden"),
    "attn.qkv.weight": ("qkv", "qkv hidden"),
    "attn.qkv.bias": ("bias", "qkv"),
    "attn.proj.weight": ("attention_out", "hidden hidden"),
    "attn.proj.bias": ("bias", "hidden"),
    "norm2.weight": ("norm", "hidden"),
    "norm2.bias": ("bias", "hidden"),
    "mlp.linear_fc1.weight": ("linear", "inner hidden"),
    "mlp.linear_fc1.bias": ("bias", "inner"),
    "mlp.linear_fc2.weight": ("residual", "hidden inner"),
    "mlp.linear_fc2.bias": ("bias", "hidden"),
}
QWEN_MERGER: Table = {
    "norm.weight": ("norm", "normed"),
    "norm.bias": ("bias", "normed"),
    "linear_fc1.weight": ("linear", "merged merged"),
    "linear_fc1.bias": ("bias", "merged"),
    "linear_fc2.weight": ("linear", "out merged"),
    "linear_fc2.bias": ("bias", "out"),
}


def qwen3_vl_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen3-VL checkpoint with tied embeddings."""
    yield from qwen3_text("model.language_model.", config["text_config"])
    yield from qwen_vision("model.visual.", config["vision_config"])


def qwen_vision(prefix: str, vision: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of the vision encoder of Qwen3-VL and Qwen3.5."""
    hidden = vision["hidden_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    sizes = {
        "hidden": hidden, "inner": vision["intermediate_size"], "qkv": 3 * hidden, "merged": merged,
        "out": vision["out_hidden_size"], "channels": vision["in_channels"], "frames": vision["temporal_patch_size"],
        "patch": vision["patch_size"], "positions": vision["num_position_embeddings"],
    }  # fmt: skip
    yield from expand(prefix, QWEN_VISION_ENDS, sizes)
    for block in range(vision["depth"]):
        yield from expand(f"{prefix}blocks.{block}.", QWEN_VISION_BLOCK, sizes)
    yield from expand(f"{prefix}merger.", QWEN_MERGER, sizes | {"normed": hidden})
    for tap in range(len(vision.get("deepstack_visual_indexes", ()))):  # these normalize after the 2x2 merge
        yield from expand(f"{prefix}deepstack_merger_list.{tap}.", QWEN_MERGER, sizes | {"normed": merged})


SYNTH = {
    "qwen3-vl-2b": Architecture(
        "qwen3-vl-2b", qwen3_vl_tensors, {"text_config": TINY_QWEN3, "vision_config": TINY_QWEN_VISION}
    )
}
