"""Which tensors the checkpoints of an architecture have: names, shapes and kinds, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..families.arlow.description import tensor_shapes

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class SynthTensor:
    """A tensor to be made; `kind` is a key of `FILLS` in synth_weights.py."""

    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


# Tables of an architecture's tensors: name -> (kind, shape in the words of a dictionary of sizes).
Table = Mapping[str, tuple[str, str]]

QWEN3_LAYER: Table = {
    "input_layernorm.weight": ("norm", "hidden"),
    "self_attn.q_proj.weight": ("linear", "query hidden"),
    "self_attn.k_proj.weight": ("linear", "key hidden"),
    "self_attn.v_proj.weight": ("linear", "key hidden"),
    "self_attn.q_norm.weight": ("qk_norm", "head"),
    "self_attn.k_norm.weight": ("qk_norm", "head"),
    "self_attn.o_proj.weight": ("attention_out", "hidden query"),
    "post_attention_layernorm.weight": ("norm", "hidden"),
    "mlp.gate_proj.weight": ("linear", "inner hidden"),
    "mlp.up_proj.weight": ("linear", "inner hidden"),
    "mlp.down_proj.weight": ("residual", "hidden inner"),
}
QWEN3_ENDS: Table = {
    "embed_tokens.weight": ("embedding", "vocab hidden"),
    "norm.weight": ("final_norm", "hidden"),
}
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


def _expand(prefix: str, table: Table, sizes: Mapping[str, int]) -> Iterator[SynthTensor]:
    for name, (kind, shape) in table.items():
        yield SynthTensor(prefix + name, tuple(sizes[word] for word in shape.split()), kind)


def qwen3_vl_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen3-VL checkpoint with tied embeddings."""
    yield from _qwen3_text("model.language_model.", config["text_config"])
    yield from _qwen_vision("model.visual.", config["vision_config"])


def qwen3_5_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen3.5 checkpoint with tied embeddings, multi-token prediction among them."""
    text, prefix = config["text_config"], "model.language_model."
    sizes = _text_sizes(text) | _delta_net_sizes(text)
    yield from _expand(prefix, QWEN3_5_ENDS, sizes)
    for layer, kind in enumerate(text["layer_types"]):
        table = QWEN3_5_LAYER if kind == "full_attention" else DELTA_NET_LAYER
        yield from _expand(f"{prefix}layers.{layer}.", table, sizes)
    yield from _qwen_vision("model.visual.", config["vision_config"])
    drafts = text.get("mtp_num_hidden_layers", 0)
    yield from _expand("mtp.", MTP_ENDS if drafts else {}, sizes)
    for layer in range(drafts):
        yield from _expand(f"mtp.layers.{layer}.", QWEN3_5_LAYER, sizes)


def llava_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a LLaVA checkpoint of a CLIP tower and a Qwen3 decoder with tied embeddings."""
    vision, tower = config["vision_config"], "vision_tower.vision_model."
    sizes = {
        "hidden": vision["hidden_size"], "inner": vision["intermediate_size"], "channels": vision["num_channels"],
        "patch": vision["patch_size"], "positions": (vision["image_size"] // vision["patch_size"]) ** 2 + 1,
        "out": config["text_config"]["hidden_size"],
    }  # fmt: skip
    yield from _expand(tower, CLIP_ENDS, sizes)
    for layer in range(vision["num_hidden_layers"]):
        yield from _expand(f"{tower}encoder.layers.{layer}.", CLIP_LAYER, sizes)
    yield from _expand("multi_modal_projector.", LLAVA_PROJECTOR, sizes)
    yield from _qwen3_text("language_model.model.", config["text_config"])


ARLOW_KINDS = {"qkv.weight": "qkv", "attn.proj.weight": "attention_out", "fc2.weight": "residual"}


def arlow_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of an Arlow vision encoder."""
    for name, shape in tensor_shapes(dict(config)):
        kind = "norm" if len(shape) == 1 else "linear"
        kinds = (found for ending, found in ARLOW_KINDS.items() if name.endswith(ending))
        yield SynthTensor(name, shape, "bias" if name.endswith(".bias") else next(kinds, kind))


def _text_sizes(text: Mapping[str, Any]) -> dict[str, int]:
    head = text["head_dim"]
    query = text["num_attention_heads"] * head
    return {
        "hidden": text["hidden_size"], "inner": text["intermediate_size"], "vocab": text["vocab_size"], "head": head,
        "query": query, "gated": 2 * query, "key": text["num_key_value_heads"] * head, "twice": 2 * text["hidden_size"],
    }  # fmt: skip


def _delta_net_sizes(text: Mapping[str, Any]) -> dict[str, int]:
    heads, head = text["linear_num_value_heads"], text["linear_value_head_dim"]
    key = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    return {
        "value_heads": heads, "value_head": head, "value": heads * head, "mixed": 2 * key + heads * head,
        "kernel": text["linear_conv_kernel_dim"], "one": 1,
    }  # fmt: skip


def _qwen3_text(prefix: str, text: Mapping[str, Any]) -> Iterator[SynthTensor]:
    sizes = _text_sizes(text)
    yield from _expand(prefix, QWEN3_ENDS, sizes)
    for layer in range(text["num_hidden_layers"]):
        yield from _expand(f"{prefix}layers.{layer}.", QWEN3_LAYER, sizes)


def _qwen_vision(prefix: str, vision: Mapping[str, Any]) -> Iterator[SynthTensor]:
    hidden = vision["hidden_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    sizes = {
        "hidden": hidden, "inner": vision["intermediate_size"], "qkv": 3 * hidden, "merged": merged,
        "out": vision["out_hidden_size"], "channels": vision["in_channels"], "frames": vision["temporal_patch_size"],
        "patch": vision["patch_size"], "positions": vision["num_position_embeddings"],
    }  # fmt: skip
    yield from _expand(prefix, QWEN_VISION_ENDS, sizes)
    for block in range(vision["depth"]):
        yield from _expand(f"{prefix}blocks.{block}.", QWEN_VISION_BLOCK, sizes)
    yield from _expand(f"{prefix}merger.", QWEN_MERGER, sizes | {"normed": hidden})
    for tap in range(len(vision.get("deepstack_visual_indexes", ()))):  # these normalize after the 2x2 merge
        yield from _expand(f"{prefix}deepstack_merger_list.{tap}.", QWEN_MERGER, sizes | {"normed": merged})
