"""Synthetic checkpoints of an Arlow encoder: their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...synth.architecture import Architecture
from ...synth.synth_layouts import SynthTensor
from .description import tensor_shapes

TINY_ARLOW = {"embed_dim": 128, "hidden_size": 256, "num_heads": 2, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
ARLOW_KINDS = {"qkv.weight": "qkv", "attn.proj.weight": "attention_out", "fc2.weight": "residual"}


def arlow_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of an Arlow vision encoder."""
    for name, shape in tensor_shapes(dict(config)):
        kind = "norm" if len(shape) == 1 else "linear"
        kinds = (found for ending, found in ARLOW_KINDS.items() if name.endswith(ending))
        yield SynthTensor(name, shape, "bias" if name.endswith(".bias") else next(kinds, kind))


SYNTH = {"arlow-vision": Architecture("arlow-vision", arlow_tensors, {"": TINY_ARLOW}, "F16", model="vision_encoder")}
