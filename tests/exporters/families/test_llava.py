"""LLaVA: compiled models equal PyTorch for its parts, text decoders and names; what is not supported is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.evidence.verification import verify
from lensmith.targets.errors import InputError
from safetensors.numpy import load_file, save_file

from tests.helpers import hf, ladder
from tests.helpers.ladder import CONVERSATIONS, IMAGES, Ladder, Pair, compile_pair, dequantize_weights
from tests.helpers.llava import LAYOUTS, edit, write_checkpoint

# Relative to the largest magnitude. Both sides compute in float32 with other orders of summation; measured are 2e-6 for
# features and 1e-5 for logits. The smallest mistakes tried are far beyond: gelu for its approximation 3e-4.
FEATURES = 2e-5
LOGITS = 5e-5
CHUNKED = 5e-5  # the same positions in other chunks, whose kernels sum in another order
DEQUANTIZED = 5e-5  # MatMulNBits multiplies by the scale behind the sum over a group


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("vqwen3-4b", tmp_path_factory.mktemp("llava") / "base", tiny=True)


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("pair")
    return compile_pair(write_checkpoint(base, folder / "source"), folder / "bundle")


class TestLadder(Ladder):
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED


def test_every_image_has_as_many_tokens(pair: Pair) -> None:
    assert {pair.features(image)[0].features.shape for image in IMAGES} == {(16, 128)}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "last layer": {"vision_feature_layer": -1},
    "in front of all layers": {"vision_feature_layer": [0, 1]},
    "several layers": {"vision_feature_layer": [-2, -3, 4]},
    "class token": {"vision_feature_select_strategy": "full"},
    "class token of several layers": {"vision_feature_select_strategy": "full", "vision_feature_layer": [1, -1]},
    "no bias in the projector": {"multimodal_projector_bias": False, "projector_hidden_act": "gelu_pytorch_tanh"},
    "gelu in the tower": {"vision_config": {"hidden_act": "gelu"}},
    "pixels behind the last patch": {"vision_config": {"image_size": 60}},
    "small patches": {"vision_config": {"patch_size": 7, "num_hidden_layers": 2}},
    "untied head": {"tie_word_embeddings": False},
    "one key-value head": {"text_config": {"num_key_value_heads": 1}},
    "qwen3 with biases": {"text_config": {"attention_bias": True}},
    "qwen2": {"text_config": {"model_type": "qwen2"}},
    "llama": {"text_config": {"model_type": "llama"}, "tie_word_embeddings": False},
    "llama with biases": {"text_config": {"model_type": "llama", "attention_bias": True, "mlp_bias": True}},
    "llama3 positions": {"text_config": {"model_type": "llama", "rope_scaling": LLAMA3, "head_dim": 32}},
    "linear positions": {"text_config": {"rope_scaling": {"type": "linear", "factor": 4.0}}},
    "parameters of transformers 5": {"text_config": {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    source = write_checkpoint(base, tmp_path / "source", VARIANTS[name], layout="transformers 5")
    pair = compile_pair(source, tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[:2], CONVERSATIONS["two turns"])
    assert errors["features"] < FEATURES
    assert errors["logits"] < LOGITS


@pytest.mark.parametrize(
    ("precision", "changes", "options"),
    [
        ("fp16", {}, {}),
        ("int8", {"tie_word_embeddings": False}, {}),
        ("int4", {}, {"group_size": 32, "symmetric": False}),
        ("int4", {"text_config": {"model_type": "qwen2"}}, {}),
    ],
)
def test_packed_weights_are_what_they_stand_for(
    precision: str, changes: Any, options: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch with dequantized weights agrees to float rounding."""
    ladder.need_torch()
    ladder.exact_kernels(monkeypatch)
    source = write_checkpoint(base, tmp_path / "source", changes, layout="transformers 5")
    pair = compile_pair(source, tmp_path / "bundle", precision=precision, kv_cache="float", **options)
    dequantize_weights(pair)
    errors = pair.worst_error(IMAGES[:2], CONVERSATIONS["two turns"])
    assert max(errors.values()) < DEQUANTIZED


def test_all_names_give_the_same_bundle(base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    hashes = set()
    for layout in LAYOUTS:
        folder = tmp_path / layout.replace(" ", "")
        source = write_checkpoint(base, folder / "source", {"tie_word_embeddings": False}, layout)
        bundle = export(prepare(source, Options()), folder / "bundle", golden="never")
        data = [bundle.file(f"{graph}.data").read_bytes() for graph in ("vision_encoder", "decoder")]
        hashes.add(hashlib.sha256(b"".join(data)).hexdigest())
        assert set(bundle.content["precision"]) | set(bundle.content["source"]["dropped"]) == set(
            open_checkpoint(source).tensors
        )
    assert len(hashes) == 1


def test_what_transformers_saves(base: Path, tmp_path: Path) -> None:
    """The names and the configuration that save_pretrained writes."""
    transformers = hf.import_transformers()
    source = write_checkpoint(base, tmp_path / "source", {"tie_word_embeddings": False})
    model = transformers.LlavaForConditionalGeneration.from_pretrained(source)
    model.save_pretrained(tmp_path / "saved")
    transformers.AutoProcessor.from_pretrained(source).save_pretrained(tmp_path / "saved")
    jobs = [prepare(folder, Options()) for folder in (source, tmp_path / "saved")]
    assert jobs[0].spec == jobs[1].spec
    assert jobs[0].sections == jobs[1].sections


def test_unused_layers_are_dropped_by_name(base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    source = write_checkpoint(base, tmp_path / "source", {"vision_feature_layer": -3})
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = np.arange(17)[None]
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(16, np.float32)
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
    save_file(tensors, file)
    job = prepare(source, Options())
    dropped = job.family.dropped(job.checkpoint, job.spec)
    assert len(dropped) == 2 * 16 + 2 + 3  # two layers, the last norm, the three above
    assert "behind layer 2 of 4" in dropped["model.vision_tower.encoder.layers.2.mlp.fc1.weight"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("drop", "language_model.model.layers.1.self_attn.q_norm.weight"), ["layers.1.self_attn.q_norm.weight"]),
        (("rename", "multi_modal_projector.linear_1.bias"), ["'model.multi_modal_projector.linear_1.bias'", "bias2"]),
        (("add", "vision_tower.vision_model.encoder.layers.1.mlp.fc3.bias"), ["layers.1.mlp.fc3.bias", "mlp.fc2.bias"]),
        (("reshape", "vision_tower.vision_model.embeddings.position_embedding.weight"), ["implies [17, 96]"]),
    ],
)
def test_every_tensor_is_accounted_for(base: Path, tmp_path: Path, change: Any, named: list[str]) -> None:
    ladder.need_torch()
    file = write_checkpoint(base, tmp_path / "source") / "model.safetensors"
    ladder.change_tensors(file, *change)
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "source", Options(precision="fp32"))
    assert all(part in str(error.value) for part in named), json.dumps(str(error.value))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"vision_config": {"model_type": "siglip_vision_model"}}, "model_type is 'siglip_vision_model'"),
    ("config.json", {"vision_config": {"model_type": "pixtral"}}, "model_type is 'pixtral'"),
    ("config.json", {"vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
    ("config.json", {"vision_config": {"image_size": [56, 84]}}, "image_size"),
    ("config.json", {"vision_config": {"num_channels": 1}}, "num_channels is 1"),
    ("config.json", {"vision_feature_layer": -7}, "vision_feature_layer"),
    ("config.json", {"vision_feature_layer": 0}, "vision_feature_layer is 0"),
    ("config.json", {"vision_feature_layer": []}, "vision_feature_layer"),
    ("config.json", {"vision_feature_select_strategy": "cls_patch"}, "select_strategy is 'cls_patch'"),
    ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
    ("config.json", {"text_config": {"model_type": "mistral"}}, "text_config.model_type is 'mistral'"),
    ("config.json", {"text_config": {"use_sliding_window": True}}, "use_sliding_window is True"),
    ("config.json", {"text_config": {"layer_types": ["sliding_attention"] * 3}}, "layer_types is 'sliding_attention'"),
    ("config.json", {"text_config": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}}, "rope_type is 'yarn'"),
    ("config.json", {"text_config": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ("config.json", {"text_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu'"),
    ("config.json", {"image_token_index": 9999}, "image_token the id 9999"),
    ("processor_config.json", {"patch_size": 7}, "writes 64 image tokens"),
    ("processor_config.json", {"num_additional_image_tokens": 0}, "writes 15 image tokens"),
    ("processor_config.json", {"vision_feature_select_strategy": "full"}, "writes 17 image tokens"),
    ("processor_config.json", {"image_token": "<picture>"}, "image_token '<picture>'"),
    ("preprocessor_config.json", {"crop_size": {"height": 28, "width": 28}}, "28 x 28"),
    ("preprocessor_config.json", {"do_center_crop": False}, "their own sizes"),
    ("preprocessor_config.json", {"image_processor_type": "LlavaImageProcessor"}, "'LlavaImageProcessor'"),
    ("preprocessor_config.json", {"do_pad": True}, "do_pad"),
    ("preprocessor_config.json", {"resample": 2}, "resample 2"),
    ("preprocessor_config.json", {"size": {"shortest_edge": 56, "longest_edge": 90}}, "longest_edge"),
]


@pytest.mark.parametrize(("file", "values", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_is_not_supported_is_refused_by_name(
    file: str, values: Any, words: str, pair: Pair, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for path in pair.job.checkpoint.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = json.loads((folder / file).read_text())
    merged = {key: {**whole[key], **new} if isinstance(new, dict) and file == "config.json" else new
              for key, new in values.items()}  # fmt: skip
    edit(folder / file, **merged)
    with pytest.raises(InputError) as error:
        prepare(folder, Options())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_pixel_limits_have_no_meaning(pair: Pair) -> None:
    with pytest.raises(InputError, match="max-pixels 9999 has no effect"):
        prepare(pair.job.checkpoint.path, Options(max_pixels=9999))
    with pytest.raises(InputError, match="min_pixels 9 has no effect"):
        pair.model.image_spec.with_pixels(min_pixels=9)
    with pytest.raises(InputError, match="no videos"):
        pair.model.prepare([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}])


def test_plan_and_evidence(base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    job = prepare(write_checkpoint(base, tmp_path / "source"), Options())
    plan = make_plan(job)
    assert set(plan.image_tokens.values()) == {16}
    bundle = export(job, tmp_path / "bundle", golden="always")
    total = sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())
    assert plan.bundle_bytes == pytest.approx(total, rel=0.03)
    assert verify(bundle).passed
