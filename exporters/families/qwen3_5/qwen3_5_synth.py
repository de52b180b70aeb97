"""Synthetic checkpoints of Qwen3.5: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import TINY_QWEN3, Architecture
from ...synth.synth_layouts import QWEN3_LAYER, SynthTensor, Table, expand, text_sizes
from ..qwen3_vl.qwen3_vl_synth import TINY_QWEN_VISION, qwen_vision

TINY_QWEN3_5 = TINY_QWEN3 | {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_num_key_heads": 2}
TINY_QWEN3_5_VISION = {key: size for key, size in TINY_QWEN_VISION.items() if key != "deepstack_visual_indexes"}

# Of Qwen3.5, whose norms multiply by 1 + weight and whose queries come with an output gate.
QWEN3_5_LAYER: Table = {
    name: (kind + "0" if kind.endswith("norm") else kind, "gated hidden" if name.endswith("q_proj.weight") else shape)
    for name, (kind, shape) in QWEN3_LAYER.items()
}
QWEN3_5_ENDS: Table = {
    "embed_tokens.weight": ("embedding", "vocab hidden"),
    "norm.weight": ("final_norm0", "hidden"),
}
DELTA_NET_LAYER: Table = {
    **{name: row for name, row in QWEN3_5_LAYER.items() if not name.startswith("self_attn.")},
    "linear_attn.in_proj_qkv.weight": ("linear", "mixed hidden"),
    "linear_attn.in_proj_z.weight": ("linear", "value hidden"),
    "linear_attn.in_proj_b.weight": ("linear", "value_heads hidden"),
    "linear_attn.in_proj_a.weight": ("linear", "value_heads hidden"),
    "linear_attn.conv1d.weight": ("conv", "mixed one kernel"),
    "linear_attn.norm.weight": ("norm", "value_head"),
    "linear_attn.A_log": ("A_log", "value_heads"),
    "linear_attn.dt_bias": ("dt_bias", "value_heads"),
    "linear_attn.out_proj.weight": ("residual", "hidden value"),
}
MTP_ENDS: Table = {
    "fc.weight": ("linear", "hidden twice"),
    "pre_fc_norm_embedding.weight": ("norm0", "hidden"),
    "pre_fc_norm_hidden.weight": ("norm0", "hidden"),
    "norm.weight": ("final_norm0", "hidden"),
}


def qwen3_5_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen3.5 checkpoint with tied embeddings, multi-token prediction among them."""
    text, prefix = config["text_config"], "model.language_model."
    heads, head = text["linear_num_value_heads"], text["linear_value_head_dim"]
    key = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    sizes = text_sizes(text) | {
        "value_heads": heads,
        "value_head": head,
        "value": heads * head,
        "mixed": 2 * key + heads * head,
        "kernel": text["linear_conv_kernel_dim"],
        "one": 1,
    }
    yield from expand(prefix, QWEN3_5_ENDS, sizes)
    for layer, kind in enumerate(text["layer_types"]):
        table = QWEN3_5_LAYER if kind == "full_attention" else DELTA_NET_LAYER
        yield from expand(f"{prefix}layers.{layer}.", table, sizes)
    yield from qwen_vision("model.visual.", config["vision_config"])
    drafts = text.get("mtp_num_hidden_layers", 0)
    yield from expand("mtp.", MTP_ENDS if drafts else {}, sizes)
    for layer in range(drafts):
        yield from expand(f"mtp.layers.{layer}.", QWEN3_5_LAYER, sizes)


SYNTH = {
    "tarn-2b": Architecture(
        "tarn-2b",
        qwen3_5_tensors,
        {"text_config": TINY_QWEN3_5 | {"linear_num_value_heads": 2}, "vision_config": TINY_QWEN3_5_VISION},
        float32=("linear_attn.A_log", "linear_attn.norm.weight"),
    ),
    "nemotron-4b": Architecture(
        "nemotron-4b",
        qwen3_5_tensors,
        {"text_config": TINY_QWEN3_5 | {"linear_num_value_heads": 4}, "vision_config": TINY_QWEN3_5_VISION},
    ),
}
