"""Bundles say how large their parts are, as the checkpoint's config and tensors do."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import safetensors
from lensmith.exporters.pipeline import Options, export, prepare

from tests.helpers.extras import Ran
from tests.paths import TINY

DEPTHS = {"qwen3_vl": "depth", "qwen3_5": "depth", "llava": "num_hidden_layers"}


def parameters(path: Path) -> dict[str, int]:
    """Of each tensor of a checkpoint."""
    with safetensors.safe_open(path / "model.safetensors", "np") as file:
        return {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("format", ["onnx", "gguf"])
@pytest.mark.parametrize("model", list(DEPTHS))
def test_parts_are_those_of_the_checkpoint(model: str, format: str, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    precision = {"onnx": "int4", "gguf": "f16"}[format]
    bundle = export(prepare(TINY / model, Options(format=format, precision=precision)), tmp_path / "b", golden="never")
    config: dict[str, Any] = json.loads((TINY / model / "config.json").read_text())
    text, vision, found = config["text_config"], config["vision_config"], bundle.content["parts"]
    decoder = found["decoder"]
    for ours, theirs in {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
                         "kv_heads": "num_key_value_heads", "vocab": "vocab_size"}.items():  # fmt: skip
        assert decoder[ours] == text[theirs], ours
    assert decoder["linear_layers"] == text.get("layer_types", []).count("linear_attention")
    if model == "qwen3_5" and format == "onnx":
        head = {"layers": 1, "linear_layers": 0, "hidden": text["hidden_size"], "heads": text["num_attention_heads"]}
        assert {key: found["mtp"][key] for key in head} == head
    encoder, heads = found["vision_encoder"], vision.get("num_heads") or vision["num_attention_heads"]
    assert (encoder["hidden"], encoder["heads"]) == (vision["hidden_size"], heads)
    dropped = vision[DEPTHS[model]] - found["vision_encoder"]["layers"]
    assert dropped == (1 if model == "llava" else 0)  # behind the layer whose states LLaVA takes
    sizes = parameters(TINY / model)
    behind = (f"layers.{vision[DEPTHS[model]] - 1}.", "post_layernorm") if model == "llava" else ()
    towers = [name for name in sizes if "vision_tower" in name]
    unused = {name for name in towers if any(part in name for part in behind)}
    used = sum(size for name, size in sizes.items() if name not in unused)
    assert sum(part["parameters"] for part in found.values()) == used == bundle.content["source"]["parameters"]
    shown = cli("inspect", bundle.path).out
    assert f"{decoder['parameters']:,}" in shown
