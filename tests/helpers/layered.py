"""Small random checkpoints of all families, and their samples, for the tests of what calibration walks through."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from lensmith.calibration.calibrated_export import float_model
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.calibration.layerwise.candidates import Candidate, unchanged
from lensmith.calibration.layerwise.float_model import FloatModel, features_of
from lensmith.calibration.layerwise.layer_pass import seen_by
from lensmith.calibration.layerwise.prepared_samples import Sample
from lensmith.calibration.layerwise.store import Store
from lensmith.calibration.layerwise.streams import SampleStream, Values
from lensmith.calibration.mixed_precision import schemes_of
from lensmith.calibration.samples.sample_preparation import Samples, open_samples
from lensmith.exporters.families.llava.llava_synth import llava_tensors
from lensmith.exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from lensmith.exporters.storage.scheme import Scheme
from lensmith.exporters.synth.making import synth
from lensmith.exporters.synth.synth_layouts import SynthTensor
from lensmith.exporters.synth.synth_weights import write_weights
from lensmith.runtimes.engines.contract import ImageFeatures
from numpy.typing import NDArray

from tests.helpers.ladder import random_image, variant
from tests.helpers.llava import edit_processor, write_json

Floats = NDArray[np.float32]
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2}  # fmt: skip
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16, "linear_value_head_dim": 32}
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "depth": 2, "out_hidden_size": 64}
CLIP = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 3,
        "image_size": 56, "patch_size": 14}  # fmt: skip

# Name: the architecture to synthesize, and what to change. DeepStack is in every Qwen3-VL.
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "qwen3_vl": ("qwen3-vl-2b", {"vision_config": {"deepstack_visual_indexes": [0, 1]}}),
    "qwen3_vl untied": ("qwen3-vl-2b", {"vision_config": {"deepstack_visual_indexes": [1]},
                        "tie_word_embeddings": False}),
    "tarn": ("tarn-2b", {"text_config": HYBRID}),
    "nemotron": ("nemotron-4b", {"text_config": HYBRID}),
    "nemotron untied without MTP": ("nemotron-4b", {"text_config": {**HYBRID, "mtp_num_hidden_layers": 0},
                                    "tie_word_embeddings": False}),
    "llava": ("vqwen3-4b", {}),
    "llava of qwen2": ("vqwen3-4b", {"text_config": {"model_type": "qwen2", "head_dim": 16}}),
}  # fmt: skip


@dataclass(repr=False)
class Bench:
    """A checkpoint ready to be calibrated, with samples."""

    path: Path
    job: Job
    model: FloatModel
    samples: Samples

    @property
    def schemes(self) -> dict[str, Scheme]:
        return schemes_of(self.job.graphs)

    @property
    def prefix(self) -> str:
        """Of the decoder's tensors."""
        return next(s.name for s in self.model.decoder.sources if ".layers." in s.name).partition(".layers.")[0]

    @property
    def tied(self) -> bool:
        """Whether the output head is the token table."""
        return self.model.spec.decoder.tied

    @cached_property
    def features(self) -> dict[str, ImageFeatures]:
        """Of the float32 model, of all pictures to calibrate on."""
        return seen_by(self.model, self.samples.calibrated, self.samples.pictures)

    def questions(self) -> list[Values]:
        """The decoder's inputs."""
        return self.model.questions(self.samples.calibrated, self.features)


def small(name: str, folder: Path) -> Path:
    """A checkpoint of one of FAMILIES in float32."""
    architecture, changes = FAMILIES[name]
    base = synth(architecture, folder / "base", tiny=True)
    if architecture == "vqwen3-4b":
        return _small_llava(base, folder / "small", changes)
    text, vision = ({**common, **changes.get(part, {})} for part, common in PARTS)
    return variant(base, folder / "small", {**changes, "text_config": text, "vision_config": vision})


PARTS = (("text_config", TEXT), ("vision_config", VISION))


def _small_llava(base: Path, folder: Path, changes: dict[str, Any]) -> Path:
    config = json.loads((base / "config.json").read_text())
    config["text_config"] |= {**TEXT, **changes.get("text_config", {})}
    config["vision_config"] |= CLIP
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    edit_processor(folder, config)
    tensors = [replace(tensor, dtype="F32") for tensor in llava_tensors(config)]
    if config["text_config"]["model_type"] == "qwen2":
        tensors = [*_qwen2(tensors)]
    write_json(folder / "config.json", config)
    write_weights(folder / "model.safetensors", tensors, 1, lambda *_: None)
    return folder


def _qwen2(tensors: list[SynthTensor]) -> Iterator[SynthTensor]:
    """Biases of queries, keys and values in place of norms."""
    for tensor in tensors:
        if not tensor.name.endswith(("q_norm.weight", "k_norm.weight")):
            yield tensor
        if tensor.name.startswith("language_model") and tensor.name.endswith(tuple(f"{p}_proj.weight" for p in "qkv")):
            name = tensor.name.replace(".weight", ".bias")
            yield SynthTensor(name, tensor.shape[:1], "position", "F32")  # large enough to be missed


def write_samples(folder: Path, count: int = 4) -> Path:
    """A JSONL file: in turn one picture with an answer, text alone, two pictures, one picture without an answer."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        names = [f"{index}-{picture}.png" for picture in range((1, 0, 2, 1)[index % 4])]
        for place, name in enumerate(names):
            random_image(60 + 8 * index, 70 - 4 * place).save(folder / name)
        answer = {"answer": f"It is number {index}."} if index % 4 in (0, 2) else {}
        lines.append(json.dumps({"images": names, "prompt": f"What is this, and where? ({index})", **answer}))
    (folder / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "samples.jsonl"


def make_bench(path: Path, scratch: Path, samples: Path, limit: int = 8, **options: Any) -> Bench:
    """Prepare a checkpoint with Options and samples of a file."""
    job = prepare(path, Options(**options))
    return Bench(path, job, float_model(job, 1), open_samples(job, chosen(samples, limit), scratch))


def chosen(samples: Path | None, limit: int, **options: Any) -> CalibrationOptions:
    """On one thread, so that no test waits for others, without the model's answers, and on its own samples alone."""
    few = {"samples": samples, "limit": limit, "threads": 1, "answer_tokens": 0, "only_samples": samples is not None}
    return CalibrationOptions(**{**few, **options})


class Whole:
    """The graphs of a bundle, each run at once by ONNX Runtime's own kernels."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}

    def __call__(self, graph: str, values: Values) -> dict[str, Any]:
        if graph not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime does
            path = str(self.bundle / f"{graph}.onnx")
            self.sessions[graph] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session = self.sessions[graph]
        names = [port.name for port in session.get_outputs()]
        return dict(zip(names, session.run(names, values), strict=True))

    def features(self, bench: Bench) -> dict[str, ImageFeatures]:
        """Of all pictures of a bench."""
        keys = sorted(bench.samples.pictures)
        starts = bench.model.pictures([bench.samples.pictures[key] for key in keys])
        outputs = [self("vision_encoder", start) for start in starts]
        pairs = [(made["image_features"], made.get("deepstack_features")) for made in outputs]
        return {key: ImageFeatures(*pair) for key, pair in zip(keys, pairs, strict=True)}

    def logits(self, bench: Bench, samples: tuple[Sample, ...]) -> list[Floats]:
        """Of all positions [seq, vocab] of each sample, from pixels on."""
        return [self("decoder", values)["logits"][0] for values in bench.model.questions(samples, self.features(bench))]


def whole_float(bench: Bench, out: Path, store: Store | None = None) -> Whole:
    """The float32 bundle, with the factors of a store."""
    job = prepare(bench.path, Options(precision="fp32"))
    if store is not None:
        job = replace(job, calibrated=replace(job.calibrated, parts=store.parts))
    return Whole(export(job, out, golden="never").path)


def walk(bench: Bench, samples: tuple[Sample, ...], candidate: Candidate | None = None) -> list[Floats]:
    """Hidden states [seq, hidden] before the head, stage by stage from pixels on."""
    model, candidate = bench.model, candidate or unchanged(bench.model)
    keys = sorted({key for sample in samples for key in sample.pictures})
    seen = SampleStream(model.pictures([bench.samples.pictures[key] for key in keys]))
    for runner in model.runners(model.vision_stages, {"it": (seen, candidate.tables)}):
        candidate.advance(seen, runner)
    stream = SampleStream(model.questions(samples, features_of(seen, keys)))
    for runner in model.runners(model.decoder_stages, {"it": (stream, candidate.tables)}):
        candidate.advance(stream, runner)
    return [values[model.last][0] for values in stream.samples]
