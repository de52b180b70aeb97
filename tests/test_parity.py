"""The ladder from graphs to tokens: compiled models equal PyTorch, on random weights and on a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.calibration.rounding import dequantize, quantize
from lensmith.exporters.export import Options, prepare
from lensmith.exporters.scheme import Scheme
from lensmith.runtimes.engine import Floats, ImageFeatures
from lensmith.runtimes.model import GenerationOptions, Model
from lensmith.runtimes.positions import text_positions
from lensmith.runtimes.replay import relative_error
from lensmith.runtimes.requests import user_message
from lensmith.targets.errors import InputError
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import ladder
from tests.ladder import CONVERSATIONS, IMAGES, Pair, compile_pair

# Errors are the largest difference relative to the largest magnitude. Both sides compute in float32, with other orders
# of summation; measured are 4e-6 for features and 1e-5 for logits. The smallest mistake tried, another approximation of
# GELU, is off by 2e-4 and 8e-4; wrong positions by 0.7 and more.
FEATURES = 2e-5
LOGITS = 5e-5
# The same positions computed in other chunks: kernels for one row and for many sum in another order.
CHUNKED = 5e-5
# Dequantized weights in PyTorch against MatMulNBits, which multiplies by the scale after the sum over a group.
DEQUANTIZED = 5e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ladder.tiny(tmp_path_factory.mktemp("parity") / "tiny")


@pytest.fixture(scope="module", params=["random", "trained"])
def pair(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ladder.need_torch()
    if request.param == "trained" and not (ladder.TRAINED / "model.safetensors").exists():
        pytest.skip("the trained model is not there")
    source = base if request.param == "random" else ladder.TRAINED
    return compile_pair(source, tmp_path_factory.mktemp("bundle") / request.param)


@pytest.mark.parametrize("index", range(len(IMAGES)))
def test_features(pair: Pair, index: int) -> None:
    ours, theirs = pair.features(IMAGES[index])
    assert ours.features.std() > 0.01
    assert relative_error(ours.features, theirs.features) < FEATURES
    assert ours.deepstack is not None
    assert theirs.deepstack is not None
    for mine, other in zip(ours.deepstack, theirs.deepstack, strict=True):
        assert relative_error(mine, other) < FEATURES


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_logits_of_all_positions(pair: Pair, name: str) -> None:
    ours, theirs = pair.all_logits(CONVERSATIONS[name])
    assert relative_error(ours, theirs) < LOGITS
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.99  # ties aside


def test_images_count(pair: Pair) -> None:
    """The checks above would miss an image path that does nothing."""
    asked = [[user_message("What?", [image])] for image in (IMAGES[0], IMAGES[0].rotate(180))]
    first, second = (pair.model.prefill(pair.model.prepare(m), reuse=False).copy() for m in asked)
    assert relative_error(first, second) > 1e-2


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_prefill(pair: Pair, chunk: int) -> None:
    messages = CONVERSATIONS["three images"]
    request = pair.model.prepare(messages)
    whole = pair.model.prefill(request, chunk=4096, reuse=False).copy()
    parts = pair.model.prefill(request, chunk=chunk, reuse=False)
    assert relative_error(parts, whole) < CHUNKED
    assert relative_error(parts, pair.reference.logits(pair.theirs(messages), 1)) < LOGITS


def test_greedy_tokens(pair: Pair) -> None:
    messages, steps = CONVERSATIONS["one image"], 256
    theirs = pair.reference.greedy(pair.theirs(messages), steps, ignore_eos=True)
    answer = pair.model.generate(messages, GenerationOptions(max_new_tokens=steps, ignore_eos=True))
    answer.read()
    assert answer.ids == theirs.ids
    ours = np.stack(list(step_logits(pair.model, messages, theirs.ids)))
    assert max(relative_error(mine, other) for mine, other in zip(ours, theirs.logits, strict=True)) < LOGITS


def step_logits(model: Model, messages: list[dict[str, Any]], ids: list[int]) -> Iterator[Floats]:
    """The logits that each of `ids` is chosen from."""
    request = model.prepare(messages)
    yield model.prefill(request, reuse=False)[-1].copy()
    for step, token in enumerate(ids[:-1]):
        yield model.decoder.run(np.array([token]), text_positions(1, request.next_position + step))[-1].copy()


def test_a_second_turn_reuses_the_cache(pair: Pair) -> None:
    model, turns = pair.model, CONVERSATIONS["two turns"]
    model.prefill(model.prepare(turns[:1]), reuse=False)
    request = model.prepare(turns)
    reusable = model.cache.reusable(request)
    assert reusable > int(request.prompt.image_spans[0][1])  # the first image is not computed again
    reused = model.prefill(request).copy()
    assert relative_error(reused, model.prefill(request, reuse=False)) < CHUNKED
    assert relative_error(reused, pair.reference.logits(pair.theirs(turns), 1)) < LOGITS
    other = [user_message("Describe it.", IMAGES[4:5]), *turns[1:]]
    assert model.cache.reusable(model.prepare(other)) <= int(request.prompt.image_spans[0][0])


VARIANTS: dict[str, dict[str, Any]] = {
    "untied head": {"tie_word_embeddings": False},
    "a key-value head for each head": {"text_config": {"num_key_value_heads": 4}},
    "one key-value head": {"text_config": {"num_key_value_heads": 1}},
    "no deepstack": {"vision_config": {"deepstack_visual_indexes": []}},
    "deepstack in all layers": {"vision_config": {"deepstack_visual_indexes": [0, 1, 2, 3]}},
    "deepstack out of order": {"vision_config": {"deepstack_visual_indexes": [3, 1]}},
    "blocks of 3 patches": {"vision_config": {"spatial_merge_size": 3}},
    "single patches": {"vision_config": {"spatial_merge_size": 1, "deepstack_visual_indexes": [2]}},
    "attention bias": {"text_config": {"attention_bias": True}},
    "small heads": {"text_config": {"head_dim": 32, "num_attention_heads": 8, "rope_scaling":
                    {"mrope_interleaved": True, "mrope_section": [8, 4, 4], "rope_type": "default"}}},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    pair = compile_pair(ladder.variant(base, tmp_path / "source", VARIANTS[name]), tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[:3], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES


@pytest.mark.parametrize(
    ("precision", "changes", "options"),
    [
        ("fp16", {}, {}),
        ("int8", {}, {}),
        ("int4", {}, {}),
        ("int4", {}, {"symmetric": False}),
        ("int4", {}, {"group_size": 32, "symmetric": False}),
        ("int4", {"tie_word_embeddings": False}, {"symmetric": False}),
        ("int8", {"tie_word_embeddings": False}, {"symmetric": False}),
    ],
)
def test_packed_weights_are_what_they_stand_for(
    precision: str, changes: Any, options: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch with dequantized weights agrees to float rounding: packing, scales and the shared table are right."""
    ladder.need_torch()
    ladder.exact_kernels(monkeypatch)
    source = ladder.variant(base, tmp_path / "source", changes)
    pair = compile_pair(source, tmp_path / "bundle", precision=precision, **options)
    dequantize_weights(pair)
    errors = pair.worst_error(IMAGES[:2], CONVERSATIONS["one image"])
    assert max(errors.values()) < DEQUANTIZED


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
    if not scheme.quantized:
        return rows.astype(np.float16).astype(np.float32)
    made = quantize(rows, bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric)
    return dequantize(made)


def test_int8_activations(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamicQuantizeMatMul is what PyTorch computes with weights and inputs rounded to 8 bits."""
    ladder.need_torch()
    ladder.change_target(monkeypatch, accuracy_level=1)
    first_block = {"vision_config": {"deepstack_visual_indexes": [0]}}
    source = ladder.variant(base, tmp_path / "source", first_block)
    pair = compile_pair(source, tmp_path / "bundle", precision="int8")
    dequantize_weights(pair)
    weights_only = [typical_error(pair, image) for image in IMAGES]
    round_inputs(pair)
    both = [typical_error(pair, image) for image in IMAGES]
    # Float noise can move a value at the border of two levels by a whole level. Where that value is the largest, the
    # scale and all roundings change, and an image is off by 4e-3; a mistake in the graph would spare no image.
    assert sorted(both)[1] < FEATURES < min(weights_only) / 50


def typical_error(pair: Pair, image: Image.Image) -> float:
    """The median over tokens of the largest relative error behind the first block."""
    ours, theirs = (features.deepstack for features in pair.features(image))
    assert ours is not None
    assert theirs is not None
    return float(np.median(np.abs(ours - theirs).max(axis=-1)) / np.abs(theirs).max())


def round_inputs(pair: Pair) -> None:
    """Let PyTorch round the inputs of the matrices whose kernels do."""
    modules = dict(pair.reference.model.named_modules())
    rounded = 0
    for source in (source for graph in pair.job.graphs for source in graph.sources):
        if source.matrix is not None and source.matrix.scheme.int8_activations:
            name = source.name.removesuffix(".weight")
            modules[name].register_forward_pre_hook(lambda _, inputs: (round_to_8_bits(inputs[0]),))
            rounded += 1
    assert rounded == 16  # four in each block


def round_to_8_bits(x: Any) -> Any:
    """DynamicQuantizeLinear and back: one scale and zero point for the whole tensor."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


def test_two_prompts_in_one_call(base: Path, tmp_path: Path) -> None:
    """The graph takes batches: an image in either row, then one decode step with caches of the same length."""
    ladder.need_torch()
    pair = compile_pair(base, tmp_path / "bundle")
    short = [user_message("What?", IMAGES[1:2])]
    plain = [user_message("x " * 400)]
    length = len(pair.theirs(short).prompt)
    for order in ((short, plain), (plain, short)):
        requests = [pair.theirs(messages) for messages in order]
        ids = np.stack([request.prompt.ids[:length] for request in requests])
        positions = np.stack([request.positions[:, :length] for request in requests], axis=1)
        images = ImageFeatures.join([image.features for request in requests for image in request.images])
        both = run_batch(pair.model, ids, positions, images)
        for row, messages in enumerate(order):
            request = pair.model.prepare(messages)
            pair.model.decoder.rewind(0)
            alone = pair.model.decoder.run(
                request.prompt.ids[:length], positions[:, row], request.images[0].features if request.images else None
            )
            assert relative_error(both[row], alone) < LOGITS
            pair.model.forget()


def run_batch(model: Model, ids: Any, positions: Any, images: ImageFeatures) -> Floats:
    decoder = model.decoder
    feed = {"input_ids": ids, "position_ids": positions, "image_features": images.features}
    feed |= {"deepstack_features": images.deepstack, "num_logits": np.array([1])}
    feed["past_lengths"] = np.zeros(len(ids), np.int32)
    for value in decoder.session.get_inputs():
        if value.name.startswith("past_key_values."):
            feed[value.name] = np.zeros((len(ids), value.shape[1], ids.shape[1], value.shape[3]), np.float32)
    logits: Floats = decoder.session.run(["logits"], feed)[0]
    return logits


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("drop", "model.visual.blocks.2.mlp.linear_fc1.bias"), ["linear_fc1.bias"]),
        (("drop", "model.language_model.layers.1.self_attn.q_norm.weight"), ["layers.1.self_attn.q_norm.weight"]),
        (("rename", "model.visual.merger.norm.weight"), ["model.visual.merger.norm.weight", "norm.weight2"]),
        (("add", "model.language_model.layers.3.mlp.gate.weight"), ["layers.3.mlp.gate.weight", "gate_proj.weight"]),
        (("reshape", "model.visual.pos_embed.weight"), ["model.visual.pos_embed.weight", "implies"]),
    ],
)
def test_every_tensor_is_accounted_for(base: Path, tmp_path: Path, change: Any, named: list[str]) -> None:
    kind, name = change
    ladder.variant(base, tmp_path / "source", {})
    file = tmp_path / "source" / "model.safetensors"
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
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "source", Options(precision="fp32"))
    assert all(part in str(error.value) for part in named), json.dumps(str(error.value))
