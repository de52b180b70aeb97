"""A checkpoint next to its compiled bundle, and tiny checkpoints with one thing changed, for tests of parity."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters import export as pipeline
from lensmith.exporters.export import Job, Options, export, prepare
from lensmith.exporters.reference import Reference
from lensmith.exporters.synth import synth
from lensmith.exporters.synth_layouts import SynthTensor, qwen3_5_tensors, qwen3_vl_tensors
from lensmith.exporters.synth_weights import write_weights
from lensmith.runtimes.engine import Floats, ImageFeatures
from lensmith.runtimes.media import Medium
from lensmith.runtimes.model import Model
from lensmith.runtimes.pixels import preprocess
from lensmith.runtimes.replay import relative_error
from lensmith.runtimes.requests import EncodedImage, EncodedVideo, Request, make_request, user_message
from lensmith.runtimes.timings import Timings
from lensmith.targets.profile import load_target
from PIL import Image

from tests import hf

TRAINED = Path(__file__).parent / "tiny_vlm" / "qwen3_vl"
SIZES = ((256, 256), (480, 200), (130, 700), (97, 61), (640, 352), (33, 1500))  # width and height in pixels


@dataclass
class Pair:
    """The compiled model and PyTorch, each with its own image features."""

    job: Job
    model: Model

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.job.checkpoint.path, threads=1)  # a second thread waits more than it computes here

    def features(self, image: Image.Image) -> tuple[ImageFeatures, ImageFeatures]:
        """Of one image: ours and PyTorch's."""
        patches, grid = preprocess(image, self.model.image_spec)
        return self.model.vision(patches, grid), self.reference.vision(patches, grid)

    def theirs(self, messages: list[dict[str, Any]]) -> Request:
        """The conversation with PyTorch's features of images, and of whole videos at once."""
        opened, videos = self.model.media.open(messages, Timings())
        images = [EncodedImage(b"", m.grid, self.reference.vision(next(m.patches()), m.grid)) for m in opened]
        encoded = [self._their_video(video) for video in videos]
        return make_request(self.model.prompts, self.model.positions, messages, images, encoded)

    def _their_video(self, video: Medium) -> EncodedVideo:
        assert video.layout is not None
        features = self.reference.vision(np.concatenate(list(video.patches())), video.layout.grid)
        each = len(features) // video.layout.grid[0]
        parts = [features[start : start + each] for start in range(0, len(features), each)]
        return EncodedVideo(video.layout, tuple(EncodedImage(b"", video.grid, part) for part in parts))

    def all_logits(self, messages: list[dict[str, Any]]) -> tuple[Floats, Floats]:
        """Of all positions of a prompt [seq, vocab], from scratch: ours and PyTorch's."""
        request = self.model.prepare(messages)
        ours = self.model.prefill(request, num_logits=len(request.prompt), reuse=False)
        return ours.copy(), self.reference.logits(self.theirs(messages))

    def worst_error(self, images: Sequence[Image.Image], messages: list[dict[str, Any]]) -> dict[str, float]:
        """The largest relative error of each output."""
        errors: dict[str, list[float]] = {"features": [], "deepstack": [0.0]}
        for image in images:
            ours, theirs = self.features(image)
            errors["features"].append(relative_error(ours.features, theirs.features))
            assert (ours.deepstack is None) == (theirs.deepstack is None)
            if ours.deepstack is not None and theirs.deepstack is not None:
                pairs = zip(ours.deepstack, theirs.deepstack, strict=True)
                errors["deepstack"] += [relative_error(mine, other) for mine, other in pairs]
        errors["logits"] = [relative_error(*self.all_logits(messages))]
        return {name: max(values) for name, values in errors.items()}


def compile_pair(source: Path, out: Path, **options: Any) -> Pair:
    """Export a checkpoint, by default in float32."""
    job = prepare(source, Options(**{"precision": "fp32", **options}))
    return Pair(job, Model(export(job, out, golden="never"), threads=1))


def need_torch() -> None:
    """Skip the test where PyTorch or transformers is missing."""
    hf.import_transformers()


def random_image(width: int, height: int) -> Image.Image:
    """Smooth colours with noise on them, the same for the same size."""
    draw = np.random.default_rng(width * 10_000 + height)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = draw.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


IMAGES = [random_image(*size) for size in SIZES]
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A red disc."}]}
CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = {
    "no image": [user_message("Name three colours, s'il vous plaît.")],
    "one image": [user_message("What is in this picture?", IMAGES[1:2])],
    "three images": [user_message("Compare.", [IMAGES[3], IMAGES[0], IMAGES[2]])],
    "two turns": [user_message("Describe it.", IMAGES[:1]), ANSWER, user_message("And this?", IMAGES[3:4])],
}


def tiny(folder: Path, name: str = "qwen3-vl-2b") -> Path:
    """A tiny random-weight checkpoint, made once."""
    return folder if folder.exists() else synth(name, folder, tiny=True)


LAYOUTS = {"qwen3_vl": qwen3_vl_tensors, "qwen3_5": qwen3_5_tensors}


def variant(base: Path, folder: Path, changes: Mapping[str, Any]) -> Path:
    """A copy of `base` with changes to parts of its config.json and fresh random weights to match."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((base / "config.json").read_text())
    for part, values in copy.deepcopy(dict(changes)).items():
        config[part] = {**config[part], **values} if isinstance(values, dict) else values
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        processor = json.loads((base / name).read_text())
        processor["merge_size"] = config["vision_config"]["spatial_merge_size"]
        (folder / name).write_text(json.dumps(processor))
    tensors = [*LAYOUTS[config["model_type"]](config), *_extra_tensors(config)]
    full = [replace(tensor, dtype="F32") for tensor in tensors]  # nearly all bfloat16 values are exact in float16
    write_weights(folder / "model.safetensors", full, 1, lambda *_: None)
    return folder


def _extra_tensors(config: dict[str, Any]) -> list[SynthTensor]:
    text = config["text_config"]
    extra = []
    if not config["tie_word_embeddings"]:
        extra.append(SynthTensor("lm_head.weight", (text["vocab_size"], text["hidden_size"]), "embedding"))
    if text["attention_bias"]:
        query, kv = (text[key] * text["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
        kinds = text.get("layer_types") or ["full_attention"] * text["num_hidden_layers"]
        gate = query if text.get("attn_output_gate") else 0
        prefixes = [f"model.language_model.layers.{i}" for i, kind in enumerate(kinds) if kind == "full_attention"]
        for prefix in prefixes + [f"mtp.layers.{i}" for i in range(text.get("mtp_num_hidden_layers", 0))]:
            for name, size in (("q", query + gate), ("k", kv), ("v", kv), ("o", text["hidden_size"])):
                name = f"{prefix}.self_attn.{name}_proj.bias"
                extra.append(SynthTensor(name, (size,), "position"))  # large enough to be missed
    return extra


def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export for a CPU whose kernels keep activations in float32."""
    change_target(monkeypatch, accuracy_level=1, int8_activations=())


def change_target(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Export for a target with other fields."""
    monkeypatch.setattr(pipeline, "load_target", lambda name: replace(load_target(name), **changes))
