"""The ladder from graphs to tokens: compiled models equal PyTorch, on random weights and on a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.engines.contract import Floats, ImageFeatures, Step
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import ladder
from tests.helpers.extras import inside, latest
from tests.helpers.ladder import CONVERSATIONS, IMAGES, Ladder, Pair, compile_pair, dequantize_weights

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


class TestLadder(Ladder):
    FEATURES, LOGITS, CHUNKED, DEEPSTACK = FEATURES, LOGITS, CHUNKED, True


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
    pair = compile_pair(source, tmp_path / "bundle", precision=precision, kv_cache="float", **options)
    dequantize_weights(pair)
    errors = pair.worst_error(IMAGES[:2], CONVERSATIONS["one image"])
    assert max(errors.values()) < DEQUANTIZED


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
            latest(pair.model).rewind(0)
            alone = latest(pair.model).run(
                Step(
                    request.prompt.ids[:length],
                    positions[:, row],
                    request.images[0].features if request.images else None,
                )
            )
            assert relative_error(both[row], alone) < LOGITS
            pair.model.forget()


def run_batch(model: Model, ids: Any, positions: Any, images: ImageFeatures) -> Floats:
    decoder = inside(model.decoder)
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
    source = ladder.variant(base, tmp_path / "source", {})
    ladder.change_tensors(source / "model.safetensors", *change)
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "source", Options(precision="fp32"))
    assert all(part in str(error.value) for part in named), json.dumps(str(error.value))
