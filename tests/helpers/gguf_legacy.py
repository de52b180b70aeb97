"""What llama.cpp's old converter makes of the CLIP tower and projector of the trained LLaVA, fresh or as stored.

The converter of today refuses them. The old one, of LLaVA 1.5, needs transformers 4, which a folder is named for:
`python -m tests.helpers.gguf_legacy LLAMA_CPP TRANSFORMERS_4` writes the stored data anew (`pip install --no-deps
--target TRANSFORMERS_4 transformers==4.57.1 huggingface_hub==0.36.0 tokenizers==0.22.1`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.paths import DATA, TINY

CHECKPOINT = TINY / "llava"
STORED = DATA / "gguf_legacy.json"
SCRIPT = "tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py"
# A torchvision of CUDA does not import beside a torch without it, but for want of two schemas.
CONVERT = """
import runpy, sys, torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def describe(path: Path, *, swapped: bool = False) -> dict[str, dict[str, str]]:
    """Of each tensor its shape and the SHA-256 of its values in float32; and all metadata of the encoder.

    `swapped`: the old converter takes the layers of an MLP for each other, which llama.cpp knows by their sizes.
    """
    reader = gguf.GGUFReader(path)
    tensors = {}
    for tensor in reader.tensors:
        digest = hashlib.sha256(tensor.data.astype(np.float32).tobytes()).hexdigest()
        tensors[_swap(tensor.name) if swapped else tensor.name] = f"{tensor.shape.tolist()} {digest}"
    keys = (key for key in reader.fields if key.startswith("clip.") or key == "general.file_type")
    metadata = {key: json.dumps(reader.fields[key].contents()) for key in sorted(keys)}
    return {"metadata": metadata, "tensors": dict(sorted(tensors.items()))}


def _swap(name: str) -> str:
    pair = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    return ".".join(pair.get(part, part) for part in name.split("."))


def fresh(sources: str, transformers: str, folder: Path) -> dict[str, dict[str, str]]:
    """What the converter makes of the checkpoint."""
    clip, projector, out = folder / "clip", folder / "llava.projector", folder / "out"
    _split(clip, projector)
    image = json.loads((CHECKPOINT / "preprocessor_config.json").read_text(encoding="utf-8"))
    options = ["--clip-model-is-vision", "--use-f32", "--llava-projector", str(projector), "-o", str(out)]
    for name in ("mean", "std"):
        options += [f"--image-{name}", *map(str, image[f"image_{name}"])]
    command = [sys.executable, "-c", CONVERT, f"{sources}/{SCRIPT}", "-m", str(clip), *options]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": transformers})
    return describe(next(out.glob("*.gguf")), swapped=True)


def _split(clip: Path, projector: Path) -> None:
    """The tower as a checkpoint of its own, the projector as a file of PyTorch."""
    import torch

    tensors = {name: value.astype(np.float32) for name, value in load_file(CHECKPOINT / "model.safetensors").items()}
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    vision: dict[str, Any] = {**config["vision_config"], "architectures": ["CLIPVisionModel"], "dtype": "float32"}
    clip.mkdir()
    layer = {"vision_feature_layer": config["vision_feature_layer"]}
    (clip / "config.json").write_text(json.dumps(vision | layer), encoding="utf-8")
    tower = {k.removeprefix("vision_tower."): v for k, v in tensors.items() if k.startswith("vision_tower.")}
    save_file(tower, clip / "model.safetensors", metadata={"format": "pt"})
    rest = {k: torch.from_numpy(v) for k, v in tensors.items() if k.startswith("multi_modal_projector.")}
    torch.save(rest, projector)


def stored() -> dict[str, dict[str, str]]:
    """What the converter of llama-cpp-python 0.3.36 made."""
    return dict(json.loads(STORED.read_text(encoding="utf-8")))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        made = fresh(sys.argv[1], sys.argv[2], Path(work))
    STORED.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
