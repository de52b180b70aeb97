"""Which tensors the checkpoints of an architecture have: names, shapes and kinds, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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


def expand(prefix: str, table: Table, sizes: Mapping[str, int]) -> Iterator[SynthTensor]:
    """The tensors of a table below a prefix."""
    for name, (kind, shape) in table.items():
        yield SynthTensor(prefix + name, tuple(sizes[word] for word in shape.split()), kind)


def text_sizes(text: Mapping[str, Any]) -> dict[str, int]:
    """The words of a table of decoder tensors."""
    head = text["head_dim"]
    query = text["num_attention_heads"] * head
    return {
        "hidden": text["hidden_size"], "inner": text["intermediate_size"], "vocab": text["vocab_size"], "head": head,
        "query": query, "gated": 2 * query, "key": text["num_key_value_heads"] * head, "twice": 2 * text["hidden_size"],
    }  # fmt: skip


def qwen3_text(prefix: str, text: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen3 decoder, whose table is its head, too."""
    sizes = text_sizes(text)
    yield from expand(prefix, QWEN3_ENDS, sizes)
    for layer in range(text["num_hidden_layers"]):
        yield from expand(f"{prefix}layers.{layer}.", QWEN3_LAYER, sizes)
