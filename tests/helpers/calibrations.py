"""Evidence of calibrations that never ran: any number of layers, with figures that look like those of real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

DECODER = {
    "self_attn.q_proj": "attention", "self_attn.k_proj": "attention", "self_attn.v_proj": "attention",
    "self_attn.o_proj": "context", "mlp.gate_proj": "mlp", "mlp.up_proj": "mlp", "mlp.down_proj": "products",
}  # fmt: skip
LINEAR = {
    "linear_attn.in_proj_qkv": "attention", "linear_attn.in_proj_z": "attention", "linear_attn.out_proj": "context",
    **{name: value for name, value in DECODER.items() if name.startswith("mlp")},
}  # fmt: skip
VISION = {"attn.qkv": "attention", "attn.proj": "context", "mlp.linear_fc1": "mlp", "mlp.linear_fc2": "products"}
INPUTS = {"attention": 1.0, "context": 2.0, "mlp": 0.7, "products": 4.0}  # how much worse than the layer they are
PREFIX = "model.language_model.layers"
TABLE = "model.language_model.embed_tokens.weight"


def manifest(layers: int = 36, **chosen: Any) -> dict[str, Any]:
    """A manifest with the evidence of `evidence`."""
    return {"evidence": {"calibration": evidence(layers, **chosen)}}


def evidence(
    layers: int = 36, *, hybrid: bool = False, mixed: bool = False, kept: bool = True, wide: bool = False
) -> dict[str, Any]:
    """As `lensmith export --calibrate` records it.

    `hybrid`: three layers of linear attention, then one of full attention. `mixed`: bits and groups by matrix, with the
    sensitivity that they follow from. `wide`: bits of all kinds.
    """
    made = list(_matrices(layers, hybrid, mixed, wide))
    nearest, calibrated = (_judged(layers, hybrid, factor) for factor in (1.0, 0.25 if kept else 1.2))
    return {
        "method": "descent",
        "samples": {
            "source": "tasks.jsonl", "sha256": "0123456789abcdef" * 4, "seed": 3, "calibrated": 64, "held_out": 21,
            "kinds": {"scenes": 30, "samples": 34},
            "foreign_kinds": {"forms": 10},
            "pictures": 51, "image_tokens": 13056, "text_tokens": 4210,
            "own_answers": {"samples": 30, "tokens": 1204, "by": "the model at 8 bits, greedily"},
            "warnings": [],
        },
        "seconds": 1843.5,
        "matrices": made,
        "sensitivity": _sensitivity(layers) if mixed else {},
        "judgement": {"float": _judged(layers, hybrid, 0.0), "nearest": nearest, "calibrated": calibrated},
        "activations": {
            "weights_error": 6e-5, "error": 9e-5, "limit": 5e-4, "roles": ["vision.qkv"],
            "added": {"vision.qkv": 3e-5, "vision.fc2": 0.02},
        },
        "tried": {"descent": [] if kept else ["foreign kinds", "answers"]},
        "kept": kept,
    }  # fmt: skip


def _kinds(layer: int, hybrid: bool) -> Mapping[str, str]:
    return LINEAR if hybrid and layer % 4 != 3 else DECODER


def _matrices(layers: int, hybrid: bool, mixed: bool, wide: bool) -> Iterator[dict[str, Any]]:
    yield _matrix("model.visual.patch_embed.proj.weight", 0, "attention", 8, 1536)
    for layer in range(2 * layers // 3):
        for kind, given in VISION.items():
            yield _matrix(f"model.visual.blocks.{layer}.{kind}.weight", layer, given, 8, 1024)
    for layer in range(3):
        yield _matrix(f"model.visual.deepstack_merger_list.{layer}.linear_fc1.weight", layer, "mlp", 4, 32)
    for layer in range(layers):
        for index, (kind, given) in enumerate(_kinds(layer, hybrid).items()):
            bits, group = 4, 128
            if mixed:
                at = (layer * 7 + index * 3) % 11
                bits, group = 8 if at in (0, 4) else 4, (32, 64, 128)[at % 3]
            if wide:
                bits = (2, 3, 4, 8)[(layer + index) % 4]
            yield _matrix(f"{PREFIX}.{layer}.{kind}.weight", layer, given, bits, group)
    if hybrid:
        for kind, given in DECODER.items():
            yield _matrix(f"mtp.layers.0.{kind}.weight", 0, given, 4, 128)


def _matrix(name: str, layer: int, given: str, bits: int, group: int) -> dict[str, Any]:
    nearest = 0.006 * INPUTS[given] * 4.0 ** (4 - bits)
    spread = INPUTS[given] ** 2 * (2 + layer % 5) * (40 if layer == 2 and given == "products" else 1)
    spread *= 0.3 if name.startswith("model.visual") else 1.0
    return {
        "name": name, "bits": bits, "group_size": group, "nearest_error": nearest, "error": 0.4 * nearest,
        "outliers": spread, "method": "descent",
    }  # fmt: skip


def _judged(layers: int, hybrid: bool, factor: float) -> dict[str, Any]:
    drift = {
        f"{PREFIX}.{layer}.{kind}.weight": factor * 0.004 * INPUTS[given] * (1 + layer) ** 0.6 * (1.2 + math.sin(layer))
        for layer in range(layers)
        for kind, given in _kinds(layer, hybrid).items()
    }
    kinds = {"image": 0.06, "text": 0.05, "text behind an image": 0.02}
    return {
        "kl": {kind: factor * value for kind, value in kinds.items()},
        "top1": {kind: 1 - 2 * factor * value for kind, value in kinds.items()},
        "positions": {"image": 6000, "text": 700, "text behind an image": 1300},
        "perplexity": 7.0 + factor / 3,
        "accuracy": {"read": 1 - factor / 8, "count": 0.75},
        "groups": {"own kinds": 0.04 * factor, "foreign kinds": 0.05 * factor, "answers": 0.01 * factor},
        "drift": drift,
        "drafts": {"top1": 1 - factor / 10, "accepted": 0.96 - factor / 20, "positions": 1400} if hybrid else None,
    }


def _sensitivity(layers: int) -> dict[str, float]:
    rows = {TABLE: 0.004}
    return rows | {f"{PREFIX}.{layer}": 0.001 + 0.02 / (1 + layer) + 0.0004 * (layer % 3) for layer in range(layers)}
