"""The ladder from features to tokens that every family climbs, and tiny checkpoints with one thing changed."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lensmith.exporters import pipeline
from lensmith.exporters.evidence.reference import Reference
from lensmith.exporters.families.qwen3_5.qwen3_5_synth import qwen3_5_tensors
from lensmith.exporters.families.qwen3_vl.qwen3_vl_synth import qwen3_vl_tensors
from lensmith.exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from lensmith.exporters.storage.rounding import dequantize, quantize
from lensmith.exporters.storage.scheme import Scheme
from lensmith.exporters.synth.making import synth
from lensmith.exporters.synth.synth_layouts import SynthTensor
from lensmith.exporters.synth.synth_weights import write_weights
from lensmith.runtimes.bundle.manifest import DECODER
from lensmith.runtimes.engines.contract import Floats, ImageFeatures, Step
from lensmith.runtimes.engines.onnx.onnx_decoder import OnnxDecoder
from lensmith.runtimes.engines.run_wishes import usable_device
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.hidden_states import run_for_hidden_states
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media.medium import Medium
from lensmith.runtimes.media.pixels import preprocess
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.runtimes.prompt.requests import (
    EncodedImage,
    EncodedVideo,
    Request,
    make_request,
    user_message,
)
from lensmith.targets.errors import InputError
from lensmith.targets.profile import load_target
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.helpers import hf
from tests.helpers.extras import latest
from tests.paths import TINY

TRAINED = TINY / "qwen3_vl"
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

    def their_hidden_states(self, messages: list[dict[str, Any]]) -> Floats:
        """PyTorch's last hidden states [seq, hidden]."""
        found: list[Any] = []
        reference, model = self.reference, self.reference.model
        hooks = [
            model.register_forward_pre_hook(lambda _, a, k: (a, {**k, "output_hidden_states": True}), with_kwargs=True),
            model.register_forward_hook(lambda _, __, out: found.append(out.hidden_states[-1][0].numpy())),
        ]
        reference.logits(self.theirs(messages), 1)
        for hook in hooks:
            hook.remove()
        states: Floats = found[0]
        return states

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
    bundle = export(job, out, golden="never")
    return Pair(job, Model(bundle, threads=1, device=usable_device(bundle.manifest)))


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


def packed_error(
    source: Path, folder: Path, images: Sequence[Image.Image], patch: pytest.MonkeyPatch, **options: Any
) -> float:
    """The largest error of a bundle of packed weights, next to PyTorch with the values that they stand for."""
    need_torch()
    exact_kernels(patch)
    pair = compile_pair(source, folder, kv_cache="float", **options)
    dequantize_weights(pair)
    return max(pair.worst_error(images, CONVERSATIONS["one image"]).values())


class Ladder:
    """Tests that a file inherits for its fixture `pair`: the compiled model equals PyTorch from features to tokens.

    Errors are the largest difference relative to the largest magnitude. Each file gives its tolerances with reasons.
    """

    FEATURES: ClassVar[float]
    LOGITS: ClassVar[float]
    CHUNKED: ClassVar[float]  # the same positions in other chunks: kernels for one and many rows sum in another order
    DEEPSTACK: ClassVar[bool] = False
    AGREED: ClassVar[float] = 0.99  # share of positions with the same likeliest token; ties aside

    @pytest.mark.parametrize("index", range(len(IMAGES)))
    def test_features(self, pair: Pair, index: int) -> None:
        ours, theirs = pair.features(IMAGES[index])
        assert ours.features.std() > 0.01
        assert relative_error(ours.features, theirs.features) < self.FEATURES
        taps = [[] if side.deepstack is None else list(side.deepstack) for side in (ours, theirs)]
        assert bool(taps[0]) == self.DEEPSTACK
        for mine, other in zip(*taps, strict=True):
            assert relative_error(mine, other) < self.FEATURES

    @pytest.mark.parametrize("name", CONVERSATIONS)
    def test_logits_of_all_positions(self, pair: Pair, name: str) -> None:
        ours, theirs = pair.all_logits(CONVERSATIONS[name])
        assert relative_error(ours, theirs) < self.LOGITS
        assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > self.AGREED

    def test_images_count(self, pair: Pair) -> None:
        """The checks above would miss an image path that does nothing."""
        asked = [[user_message("What?", [image])] for image in (IMAGES[0], IMAGES[0].rotate(180))]
        first, second = (pair.model.prefill(pair.model.prepare(m), reuse=False).copy() for m in asked)
        assert relative_error(first, second) > 1e-2

    @pytest.mark.parametrize("chunk", [1, 7, 64])
    def test_chunked_prefill(self, pair: Pair, chunk: int) -> None:
        messages, states = CONVERSATIONS["three images"], latest(pair.model).states
        request = pair.model.prepare(messages)
        whole, after = pair.model.prefill(request, chunk=4096, reuse=False).copy(), states.copies()
        parts = pair.model.prefill(request, chunk=chunk, reuse=False)
        assert relative_error(parts, whole) < self.CHUNKED
        assert relative_error(parts, pair.reference.logits(pair.theirs(messages), 1)) < self.LOGITS
        assert worst(states.copies(), after) < self.CHUNKED

    @pytest.mark.parametrize("name", ["no image", "three images"])
    def test_hidden_states(self, pair: Pair, name: str) -> None:
        """As transformers' hidden_states[-1], whatever the chunks. They are as far off as logits, which follow them."""
        messages, model = CONVERSATIONS[name], pair.model
        if not isinstance(model.decoder, OnnxDecoder) and "hidden_states" not in model.manifest.graphs[DECODER].outputs:
            with pytest.raises(InputError, match="draft head, which this bundle lacks"):
                model.hidden_states(messages)
            return
        theirs = pair.their_hidden_states(messages)
        found = model.hidden_states(messages)
        assert relative_error(found.states, theirs) < self.LOGITS
        assert relative_error(found.pooled(), theirs[-1]) < self.LOGITS
        assert np.linalg.norm(found.pooled(normalize=True)) == pytest.approx(1, abs=1e-6)
        request = model.prepare(messages)
        assert found.ids.tolist() == request.prompt.ids.tolist()
        parts = run_for_hidden_states(model.decoder, model.prompts, request, 7)
        assert relative_error(parts.states, theirs) < self.LOGITS

    def test_greedy_tokens(self, pair: Pair) -> None:
        messages, steps = CONVERSATIONS["one image"], 256
        theirs = pair.reference.greedy(pair.theirs(messages), steps, ignore_eos=True)
        answer = pair.model.generate(messages, GenerationOptions(max_new_tokens=steps, ignore_eos=True))
        answer.read()
        assert answer.ids == theirs.ids
        ours = np.stack(list(step_logits(pair.model, messages, theirs.ids)))
        assert max(relative_error(mine, other) for mine, other in zip(ours, theirs.logits, strict=True)) < self.LOGITS

    def test_a_second_turn_reuses_the_first(self, pair: Pair) -> None:
        model, turns = pair.model, CONVERSATIONS["two turns"]
        model.prefill(model.prepare(turns[:1]), reuse=False)
        request = model.prepare(turns)
        first_image, behind_it = (int(place) for place in request.prompt.image_spans[0])
        assert latest(model).reusable(request) > behind_it
        assert latest(model).start(request) >= behind_it  # the first image is not computed again
        other = [user_message("Describe it.", IMAGES[4:5]), *turns[1:]]
        assert latest(model).reusable(model.prepare(other)) <= first_image
        answer = model.generate(turns, GenerationOptions(max_new_tokens=1))
        answer.read()
        assert answer.timings.reused_tokens >= behind_it
        model.prefill(model.prepare(turns[:1]), reuse=False)
        reused, states = model.prefill(request).copy(), latest(model).states.copies()
        assert relative_error(reused, model.prefill(request, reuse=False)) < self.CHUNKED
        assert relative_error(reused, pair.reference.logits(pair.theirs(turns), 1)) < self.LOGITS
        assert worst(states, latest(model).states.copies()) < self.CHUNKED


def step_logits(model: Model, messages: list[dict[str, Any]], ids: list[int]) -> Iterator[Floats]:
    """The logits that each of `ids` is chosen from."""
    request = model.prepare(messages)
    yield model.prefill(request, reuse=False)[-1].copy()
    for step, token in enumerate(ids[:-1]):
        yield latest(model).run(Step(np.array([token]), text_positions(1, request.next_position + step)))[-1].copy()


def worst(ours: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> float:
    """The largest relative error among recurrent states; 0 where there are none."""
    assert ours.keys() == theirs.keys()
    return max((relative_error(ours[name], theirs[name]) for name in ours), default=0.0)


def dequantize_weights(pair: Pair) -> None:
    """Put the rounded weights of the bundle into PyTorch's model."""
    torch, parameters = pair.reference.torch, pair.reference.model.state_dict()
    rounded = 0
    for source in (source for graph in pair.job.graphs for source in graph.sources):
        if source.matrix is not None and source.matrix.scheme.bits < 32:
            weight = parameters[source.name]
            rows = round_rows(weight.numpy().reshape(len(weight), -1), source.matrix.scheme)
            weight.copy_(torch.from_numpy(rows).reshape(weight.shape))
            rounded += 1
    assert rounded > 40


def round_rows(rows: Floats, scheme: Scheme) -> Floats:
    """The values that a packed matrix stands for."""
    if not scheme.quantized:
        return rows.astype(np.float16).astype(np.float32)
    made = quantize(rows, bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric)
    return dequantize(made)


def change_tensors(file: Path, kind: str, name: str) -> None:
    """Change one tensor of a safetensors file: "drop", "rename" (with a 2 behind its name), "add" or "reshape" it."""
    tensors = load_file(file)
    if kind in ("drop", "rename"):
        moved = tensors.pop(name)
    if kind == "rename":
        tensors[f"{name}2"] = moved
    if kind == "add":
        tensors[name] = np.zeros((2, 2), np.float32)
    if kind == "reshape":
        tensors[name] = tensors[name][:, :-1].copy()
    save_file(tensors, file)


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


def side_by_side(model: Model, *questions: list[dict[str, Any]], tokens: int = 8) -> list[list[int]]:
    """The answers to questions that are asked at once, step by step."""
    requests, found = [model.prepare(question) for question in questions], [list[int]() for _ in questions]
    with ExitStack() as stack:
        open_now = [stack.enter_context(model.conversation(request)) for request in requests]
        logits = [conversation.prefill(request)[-1] for conversation, request in zip(open_now, requests, strict=True)]
        for step in range(tokens):
            for index, (conversation, request) in enumerate(zip(open_now, requests, strict=True)):
                found[index].append(int(logits[index].argmax()))
                place = text_positions(1, request.next_position + step)
                logits[index] = conversation.run(Step(np.array(found[index][-1:]), place))[-1]
    return found
