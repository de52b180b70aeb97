"""The ladder for Qwen2-VL: layer norms, whole attention and QuickGELU in the vision encoder, Qwen2.5-VL's decoder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.families.qwen2_vl.axial_spec import AxialTransformer
from lensmith.exporters.families.qwen2_vl.qwen2_vl import describe
from lensmith.exporters.families.qwen2_vl.qwen2_vl_synth import qwen2_vl_tensors
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.media.pixels import preprocess
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import InputError

from tests.exporters.families.test_qwen2_5_vl import nested, text, variant, vision
from tests.helpers import hf, ladder
from tests.helpers.ladder import CONVERSATIONS, IMAGES, Ladder, Pair, compile_pair, packed_error, random_image
from tests.paths import ROOT
from tests.runtimes.media.test_video_parity import frames

ARCHITECTURE = "qwen2-vl-2b"

# Both sides compute in float32 in other orders.
FEATURES, LOGITS, CHUNKED = 2e-5, 5e-5, 5e-5
SIZES = [(28, 28), (56, 500), (28, 2800), (252, 250)]  # width, height: one image token, one row, one column


class TestLadder(Ladder):
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED


def test_features_of_edges_and_of_random_sizes(pair: Pair) -> None:
    draw = random.Random(5)
    for size in [*SIZES, *((draw.randint(20, 700), draw.randint(20, 400)) for _ in range(12))]:
        ours, theirs = pair.features(random_image(*size))
        assert relative_error(ours.features, theirs.features) < FEATURES, size


def nested_here(config: dict[str, Any]) -> None:
    nested(config)
    config["text_config"]["model_type"] = "qwen2_vl_text"


VARIANTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "untied head": text(tie_word_embeddings=False),
    "a section for the decoder": nested_here,
    "wider inside": vision(mlp_ratio=3),
    "another activation": vision(hidden_act="silu"),
    "the exact GELU": vision(hidden_act="gelu"),
    "heads of 32": vision(num_heads=4),
    "other angles": vision(rope_parameters={"rope_type": "axial", "rope_theta": 50.0}),
    "blocks of 3 patches": vision(spatial_merge_size=3),
    "a key-value head for each head": text(num_key_value_heads=4),
    "other sections": text(rope_scaling={"type": "mrope", "mrope_section": [16, 4, 12]}, rope_theta=5000.0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    pair = compile_pair(variant(base, tmp_path / "source", VARIANTS[name], qwen2_vl_tensors), tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[:3], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES


@pytest.mark.parametrize(
    "options", [{"precision": "fp16"}, {"precision": "int8"}, {"precision": "int4", "symmetric": False}]
)
def test_packed_weights_are_what_they_stand_for(
    options: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder.need_torch()
    assert packed_error(base, tmp_path / "bundle", IMAGES[:2], monkeypatch, **options) < LOGITS


def test_the_default_export_is_proven(base: Path, tmp_path: Path) -> None:
    """Graphs against PyTorch, weights, constants, pixels and ids, and golden traces that replay."""
    ladder.need_torch()
    bundle = export(prepare(base, Options()), tmp_path / "bundle", golden="always")
    assert bundle.content["evidence"]["golden"]["recorded"]
    assert verify(open_bundle(bundle.path)).passed


@pytest.mark.parametrize("options", [{"target": "cuda"}, {"format": "tensorrt", "target": "rtx-40", "context": 2048}])
def test_dialects_for_gpus(options: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 on ONNX Runtime's CPU kernels, so that nothing but the order of sums differs from PyTorch."""
    ladder.need_torch()
    ladder.change_target(monkeypatch, activations="float32", lacks=())
    pair = compile_pair(base, tmp_path / "bundle", **options)
    errors = pair.worst_error([*IMAGES, random_image(28, 28)], CONVERSATIONS["three images"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES


def test_patches_and_ids_are_those_of_transformers(pair: Pair, base: Path) -> None:
    processor = hf.import_transformers().AutoProcessor.from_pretrained(base)
    draw = random.Random(1)
    for case in range(8):
        images = [random_image(draw.randint(10, 900), draw.randint(10, 300)) for _ in range(draw.randint(1, 3))]
        for image in images:
            theirs = processor.image_processor(images=[image], return_tensors="np")
            patches, grid = preprocess(image, pair.model.image_spec)
            assert [*grid] == theirs["image_grid_thw"][0].tolist()
            np.testing.assert_array_equal(patches, theirs["pixel_values"])
        words = " ".join(draw.choice(["Wie", "viel", "<b>", "3.14", "\n", "日本", "don't", "  x"]) for _ in range(12))
        messages = [user_message(words, images), {"role": "assistant", "content": "ok"}, user_message("And?")]
        named: dict[str, Any] = {"add_vision_id": True} if case % 2 else {}
        ids = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="np", **named
        )["input_ids"]
        assert pair.model.prepare(messages, **named).prompt.ids.tolist() == np.asarray(ids).reshape(-1).tolist()


def test_videos_are_refused(pair: Pair) -> None:
    with pytest.raises(InputError, match="video"):
        pair.model.prepare([user_message("What moves?", videos=[frames(5, 150, 90)], frame_rate=2)])


def test_llama_cpp_is_refused(base: Path) -> None:
    with pytest.raises(InputError, match="no GGUF files of qwen2_vl yet"):
        prepare(base, Options(format="gguf", precision="f16"))


def test_published_values() -> None:
    """The configuration that `lensmith synth` has at full size is that of the published 2B."""
    config = json.loads((ROOT / "exporters/synth/synth_configs/qwen2-vl-2b/config.json").read_text())
    spec = describe(config)
    tower = spec.vision
    assert isinstance(tower, AxialTransformer)
    assert (tower.depth, tower.hidden, tower.intermediate, tower.head_dim, tower.out_hidden, tower.activation) == (
        32, 1280, 5120, 80, 1536, "quick_gelu")  # fmt: skip
    decoder = spec.decoder
    assert (decoder.layers, decoder.head_dim, decoder.mrope_section, decoder.tied) == (28, 128, (16, 24, 24), True)
    theirs = hf.import_transformers().AutoConfig.for_model(**config)
    assert decoder.rope_theta == theirs.text_config.rope_parameters["rope_theta"]
    assert decoder.norm_eps == theirs.text_config.rms_norm_eps


def test_values_that_are_left_out_are_those_of_transformers() -> None:
    config: dict[str, Any] = {"model_type": "qwen2_vl", "text_config": {}, "vision_config": {}}
    theirs = hf.import_transformers().AutoConfig.for_model(**json.loads(json.dumps(config)))
    spec = describe(config)
    tower, decoder = spec.vision, spec.decoder
    assert isinstance(tower, AxialTransformer)
    wanted = theirs.vision_config
    assert (tower.depth, tower.hidden, tower.heads, tower.intermediate, tower.activation, tower.out_hidden) == (
        wanted.depth, wanted.embed_dim, wanted.num_heads, wanted.embed_dim * wanted.mlp_ratio, wanted.hidden_act,
        wanted.hidden_size,
    )  # fmt: skip
    assert (tower.channels, tower.patch_size, tower.temporal_patch_size, tower.merge_size, tower.rope_theta) == (
        wanted.in_channels, wanted.patch_size, wanted.temporal_patch_size, wanted.spatial_merge_size,
        wanted.rope_parameters["rope_theta"],
    )  # fmt: skip
    wanted = theirs.text_config
    assert (decoder.layers, decoder.hidden, decoder.heads, decoder.kv_heads, decoder.vocab, decoder.context) == (
        wanted.num_hidden_layers, wanted.hidden_size, wanted.num_attention_heads, wanted.num_key_value_heads,
        wanted.vocab_size, wanted.max_position_embeddings,
    )  # fmt: skip
    assert (decoder.norm_eps, decoder.tied) == (wanted.rms_norm_eps, theirs.tie_word_embeddings)
    assert (spec.image_token_id, spec.video_token_id) == (theirs.image_token_id, theirs.video_token_id)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a width of a fraction": (vision(mlp_ratio=2.5), "mlp_ratio"),
    "a width of none": (vision(mlp_ratio=None), "mlp_ratio"),
    "heads that do not fit": (vision(num_heads=3), "embed_dim is 128; expected a multiple of 3"),
    "heads without a place for angles": (vision(num_heads=64), "vision head size"),
    "a head size of its own": (vision(head_dim=32), "head_dim"),
    "heads by a second name": (vision(num_attention_heads=4), "num_attention_heads is 4.*expected 2"),
    "angles of another kind": (vision(rope_parameters={"rope_type": "linear", "factor": 2.0}), "rope_type"),
    "another activation": (vision(hidden_act="relu"), "hidden_act"),
    "windows in the decoder": (text(use_sliding_window=True), "use_sliding_window"),
    "some layers in windows": (text(layer_types=["sliding_attention"] * 4), "layer_types.*for qwen2_vl"),
    "a null that transformers refuses": (text(image_token_id=None), "image_token_id is null"),
    "interleaved positions": (
        text(rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12], "mrope_interleaved": True}),
        "mrope_interleaved",
    ),
    "stretched positions": (text(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_named(name: str, base: Path) -> None:
    change, words = REFUSED[name]
    config = json.loads((base / "config.json").read_text())
    change(config)
    with pytest.raises(InputError, match=words):
        describe(config)


@pytest.mark.parametrize("key", ["attention_dropout", "max_window_layers", "use_sliding_window", "layer_types"])
def test_null_is_taken_where_transformers_takes_it(key: str, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    expected = describe(config)
    assert describe({**config, key: None}) == expected
    hf.import_transformers().AutoConfig.for_model(**{**config, key: None})  # raises where it does not
