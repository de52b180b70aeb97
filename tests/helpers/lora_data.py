"""Writes small adapters of the trained model as peft saves them, with the weights that peft merges.

Run `python -m tests.helpers.lora_data` where peft is installed; the tests need the written files alone.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from typing import Any

from lensmith.exporters.evidence.torch_loading import import_torch

from tests.paths import DATA, TINY

FOLDER = DATA / "lora"
BASE = TINY / "qwen3_vl"
EXPECTED = "merged.safetensors"  # by the names of the base
LAYER = r".*layers\.0\..*(q_proj|k_proj)"
CASES: Mapping[str, dict[str, Any]] = {
    "patterns": {"r": 4, "lora_alpha": 6, "target_modules": LAYER, "use_rslora": True,
                 "rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {r".*\.k_proj": 3}},
    "dora": {"r": 2, "lora_alpha": 5, "target_modules": LAYER, "use_dora": True},
    "vision": {"r": 2, "lora_alpha": 4, "target_modules": r".*visual\.(patch_embed\.proj|blocks\.0\.attn\.proj)",
               "bias": "lora_only", "lora_bias": True, "modules_to_save": ["language_model.norm"]},
    "bias": {"r": 2, "lora_alpha": 4, "target_modules": r".*visual\.blocks\.0\.attn\.proj", "bias": "all"},
}  # fmt: skip


def write(name: str, torch: Any, transformers: Any) -> None:
    """Train nothing: every part that could be trained is moved by noise."""
    peft, safetensors = importlib.import_module("peft"), importlib.import_module("safetensors.torch")
    load = transformers.AutoModelForImageTextToText.from_pretrained
    model = peft.get_peft_model(load(BASE, dtype=torch.float32), peft.LoraConfig(**CASES[name]))
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "tiny/qwen3_vl"}))
    before = load(BASE, dtype=torch.float32).state_dict()
    merged = peft.PeftModel.from_pretrained(load(BASE, dtype=torch.float32), folder).merge_and_unload().state_dict()
    changed = {key: value for key, value in merged.items() if not torch.equal(value, before[key])}
    safetensors.save_file(changed, folder / EXPECTED)
    print(f"{folder}: {len(changed)} tensors")


def main() -> None:
    """Write all cases."""
    torch, transformers = import_torch()
    for name in CASES:
        write(name, torch, transformers)


if __name__ == "__main__":
    main()
