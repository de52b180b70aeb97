"""Small LLaVA checkpoints with random weights, made by code: one thing changed at a time, under any of the names."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.helpers import hf

SMALL_TEXT = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096}  # fmt: skip
SMALL_VISION = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 3,
                "image_size": 56, "patch_size": 14}  # fmt: skip
QWEN3_ONLY = ("head_dim", "architectures", "max_window_layers", "attention_bias")


def _published(name: str) -> str:
    name = name.removeprefix("model.").replace("lm_head.", "language_model.lm_head.")
    name = name.replace("language_model.", "language_model.model.") if "lm_head" not in name else name
    return name.replace("vision_tower.", "vision_tower.vision_model.")


# Names by who writes them.
LAYOUTS: Mapping[str, Callable[[str], str]] = {
    "transformers 5": lambda name: name,
    "published": _published,
    "transformers 4": lambda name: _published(name).replace("language_model.lm_head.", "lm_head."),
    "bare tower": lambda name: _published(name).replace("vision_tower.vision_model.", "vision_tower."),
}


def write_checkpoint(
    base: Path, folder: Path, changes: Mapping[str, Any] | None = None, layout: str = "published", seed: int = 0
) -> Path:
    """A small checkpoint with the tokenizer of `base`, with `changes` to its config.json and weights to match.

    A part of `changes` is merged into that part; a `text_config` with a model_type starts without Qwen3's own keys.
    """
    config = json.loads((base / "config.json").read_text())
    config["text_config"].update(SMALL_TEXT)
    config["vision_config"].update(SMALL_VISION)
    for part, values in copy.deepcopy(dict(changes or {})).items():
        if part == "text_config" and "model_type" in values:
            config[part] = {key: value for key, value in config[part].items() if key not in QWEN3_ONLY}
        config[part] = {**config[part], **values} if isinstance(values, dict) else values
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"]
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    write_json(folder / "config.json", config)
    edit_processor(folder, config)
    _write_weights(folder, LAYOUTS[layout], seed)
    return folder


def with_moved_positions(base: Path, folder: Path) -> Path:
    """A copy whose positions make up for where llama.cpp has the class token: behind the patches, not in front."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("embeddings.position_embedding.weight"))
    save_file({**tensors, name: np.roll(tensors[name], -1, axis=0)}, folder / "model.safetensors")
    return folder


def edit_processor(folder: Path, config: Mapping[str, Any]) -> None:
    """Let the files of the processor fit the configuration."""
    side, vision = config["vision_config"]["image_size"], config["vision_config"]
    edit(folder / "preprocessor_config.json", size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    strategy = config["vision_feature_select_strategy"]
    edit(folder / "processor_config.json", patch_size=vision["patch_size"], vision_feature_select_strategy=strategy)


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text()), **values})


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def _write_weights(folder: Path, rename: Callable[[str], str], seed: int) -> None:
    transformers = hf.import_transformers()
    import torch
    from safetensors.torch import save_file as save_tensors

    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensors[rename(name)] = _draw(torch, name, value, generator)
    save_tensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _draw(torch: Any, name: str, value: Any, generator: Any) -> Any:
    """Values large enough that no part of the model could be left out unseen."""
    noise = torch.randn(value.shape, generator=generator)
    if value.ndim >= 2 and "embed" not in name:
        return noise / value[0].numel() ** 0.5
    if value.ndim >= 2 and "patch" in name:
        return noise / value[0].numel() ** 0.5
    return noise * 0.5 if value.ndim >= 2 or name.endswith(("bias", "class_embedding")) else 1 + 0.2 * noise
