"""Values that config.json leaves out are those of transformers' classes, which write only what differs from them."""

from __future__ import annotations

import copy
import importlib
import json
import math
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.families.configs import (
    ACTIVATIONS,
    KINDS,
    either,
    number,
    some,
    whole,
)
from lensmith.exporters.families.families import FAMILIES
from lensmith.exporters.spec import DecoderSpec, ModelSpec
from lensmith.exporters.tower_specs import ClipTowerSpec, VisionSpec
from lensmith.targets.errors import InputError

from tests.helpers import hf
from tests.paths import TINY

# Keys that lensmith has defaults for; without others it says which one is missing.
TEXT = {
    "qwen3_vl": ("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "rope_theta",
                 "mrope_section"),
    "qwen3_5": ("head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mrope_section", "partial_rotary_factor",
                "layer_types", "full_attention_interval", "rope_type"),
}  # fmt: skip
VISION = ("hidden_act", "in_channels", "rope_parameters")
NEEDED = {
    "text_config": ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
                    "max_position_embeddings"),
    "vision_config": ("depth", "hidden_size", "num_heads", "intermediate_size", "patch_size", "temporal_patch_size",
                      "spatial_merge_size", "num_position_embeddings", "out_hidden_size"),
}  # fmt: skip


def config_of(family: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((TINY / family / "config.json").read_text())
    return config


def without(config: dict[str, Any], section: str, *keys: str) -> dict[str, Any]:
    """A copy that lacks keys of a section, or of its rotary parameters."""
    made = copy.deepcopy(config)
    for key in keys:
        for place in (made[section], *(made[section].get(name) or {} for name in ("rope_parameters", "rope_scaling"))):
            place.pop(key, None)
    return made


def described(config: dict[str, Any]) -> ModelSpec:
    spec = FAMILIES[config["model_type"]].describe(config)
    assert isinstance(spec, ModelSpec)
    return spec


def theirs(config: dict[str, Any]) -> Any:
    """As transformers completes it."""
    hf.import_transformers()
    mapping = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    return mapping[config["model_type"]](**copy.deepcopy(config))


def ours_of_text(spec: DecoderSpec) -> dict[str, Any]:
    return {"layers": spec.layers, "hidden": spec.hidden, "heads": spec.heads, "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim, "intermediate": spec.intermediate, "vocab": spec.vocab, "eps": spec.norm_eps,
            "activation": spec.activation, "theta": spec.rope_theta, "context": spec.context,
            "rotated": spec.rotated, "biases": (spec.qkv_bias, spec.output_bias, spec.mlp_bias)}  # fmt: skip


def theirs_of_text(text: Any) -> dict[str, Any]:
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters
    bias = getattr(text, "attention_bias", False)
    biases = (True, False, False) if text.model_type == "qwen2" else (bias, bias, getattr(text, "mlp_bias", False))
    return {"layers": text.num_hidden_layers, "hidden": text.hidden_size, "heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads, "head_dim": head_dim, "intermediate": text.intermediate_size,
            "vocab": text.vocab_size, "eps": text.rms_norm_eps, "activation": ACTIVATIONS[text.hidden_act],
            "theta": rope["rope_theta"], "context": text.max_position_embeddings,
            "rotated": int(head_dim * rope.get("partial_rotary_factor", 1)), "biases": biases}  # fmt: skip


def mrope_section(family: str, text: Any) -> tuple[int, ...]:
    """What the rotary embedding of transformers takes."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = {"qwen3_vl": "Qwen3VLTextRotaryEmbedding", "qwen3_5": "Qwen3_5TextRotaryEmbedding"}[family]
    return tuple(getattr(module, name)(text).mrope_section)


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in TEXT.items() for key in keys])
def test_decoders_of_the_qwen_families(family: str, key: str) -> None:
    """Sizes are such that the defaults of all other values fit."""
    config = config_of(family)
    sizes = {"num_attention_heads": 64} if key == "num_key_value_heads" else {}
    rope = {"mrope_section": [24, 20, 20]} if family == "qwen3_vl" else {"mrope_section": [11, 11, 10]}
    config["text_config"] |= {**sizes, "head_dim": 128 if family == "qwen3_vl" else 256}
    if key == "partial_rotary_factor":
        config["text_config"]["head_dim"] = 256
    config["text_config"].setdefault("rope_parameters", config["text_config"].pop("rope_scaling", {}))
    config["text_config"]["rope_parameters"] |= rope
    config = without(config, "text_config", key)
    spec, text = described(config).decoder, theirs(config).text_config
    assert ours_of_text(spec) == theirs_of_text(text)
    assert spec.mrope_section == mrope_section(family, text)
    kinds = getattr(text, "layer_types", None) or []
    assert spec.linear_layers == {layer for layer, kind in enumerate(kinds) if kind == "linear_attention"}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_decoders_inside_llava(kind: str) -> None:
    """Nothing but the type; and each size alone."""
    for text in ({}, {"hidden_size": 2048}, {"num_attention_heads": 64}, {"num_key_value_heads": 8},
                 {"rms_norm_eps": 1e-5}, {"max_position_embeddings": 512, "rope_theta": 5e5},
                 {"attention_bias": True}, {"head_dim": 64}):  # fmt: skip
        config = {**config_of("llava"), "tie_word_embeddings": False, "text_config": {"model_type": kind, **text}}
        if kind == "qwen2" and text.keys() & {"attention_bias", "head_dim"}:
            continue  # which that class does not have
        if kind != "llama" and text.keys() & {"num_attention_heads"}:
            continue  # fewer heads for keys than lensmith has a place for is no default of theirs
        assert ours_of_text(described(config).decoder) == theirs_of_text(theirs(config).text_config), text


def test_clip_towers() -> None:
    for vision in ({}, {"hidden_size": 1024, "num_attention_heads": 16}, {"image_size": 336, "patch_size": 14}):
        config = {"model_type": "llava", "text_config": {"model_type": "llama"},
                  "vision_config": {"model_type": "clip_vision_model", **vision}}  # fmt: skip
        whole, spec = theirs(config), described(config).vision
        tower = whole.vision_config
        assert isinstance(spec, ClipTowerSpec)
        assert (spec.hidden, spec.heads, spec.intermediate, spec.depth) == (
            tower.hidden_size, tower.num_attention_heads, tower.intermediate_size, tower.num_hidden_layers)  # fmt: skip
        assert (spec.image_size, spec.patch_size, spec.channels) == (
            tower.image_size, tower.patch_size, tower.num_channels)  # fmt: skip
        assert (spec.activation, spec.norm_eps) == (ACTIVATIONS[tower.hidden_act], tower.layer_norm_eps)
        assert spec.feature_depths == (tower.num_hidden_layers + 1 + whole.vision_feature_layer,)
        assert spec.keep_class == (whole.vision_feature_select_strategy == "full")
        assert spec.projector_activation == ACTIVATIONS[whole.projector_hidden_act]
        assert spec.projector_bias == whole.multimodal_projector_bias
        assert described(config).image_token_id == whole.image_token_index


@pytest.mark.parametrize("outer", [None, False, True])
@pytest.mark.parametrize("inner", [None, False, True])
def test_ties_of_llava(outer: bool | None, inner: bool | None) -> None:
    config = without(config_of("llava"), "text_config", "tie_word_embeddings")
    del config["tie_word_embeddings"]
    config |= {} if outer is None else {"tie_word_embeddings": outer}
    config["text_config"] |= {} if inner is None else {"tie_word_embeddings": inner}
    assert described(config).decoder.tied == theirs(config).tie_word_embeddings


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("key", VISION)
def test_vision_encoders_of_the_qwen_families(family: str, key: str) -> None:
    config = config_of(family)
    config["vision_config"]["rope_parameters"] = {"rope_type": "axial", "rope_theta": 500.0}
    config = without(config, "vision_config", key)
    spec, vision = described(config).vision, theirs(config).vision_config
    assert isinstance(spec, VisionSpec)
    assert (spec.activation, spec.channels) == (ACTIVATIONS[vision.hidden_act], vision.in_channels)
    assert spec.rope_theta == vision.rope_parameters["rope_theta"]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    block = getattr(module, {"qwen3_vl": "Qwen3VLVisionBlock", "qwen3_5": "Qwen3_5VisionBlock"}[family])
    assert spec.norm_eps == block(vision).norm1.eps


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize(("key", "second"), [("depth", "num_hidden_layers"), ("num_heads", "num_attention_heads")])
def test_second_names_of_sizes(family: str, key: str, second: str) -> None:
    """They count in transformers, so they may only say the same."""
    config = config_of(family)
    section = config["vision_config"]
    expected, section[second] = described(config), section[key]
    assert described(config) == expected
    section[second] = 1
    assert getattr(theirs(config).vision_config, key) == 1
    with pytest.raises(InputError, match=f"{second} is 1, not supported for {family}; expected {section[key]}"):
        described(config)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("section", NEEDED)
def test_sizes_that_must_be_there(family: str, section: str) -> None:
    for key in NEEDED[section]:
        with pytest.raises(InputError, match=f"config.json has no {key}; it is required for {family}"):
            described(without(config_of(family), section, key))


def test_names_of_activations_mean_what_transformers_computes() -> None:
    x = np.linspace(-4, 4, 81)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    formulas = {"gelu_tanh": tanh, "gelu": 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
                "silu": x / (1 + np.exp(-x)), "quick_gelu": x / (1 + np.exp(-1.702 * x))}  # fmt: skip
    torch, functions = importlib.import_module("torch"), hf.import_transformers().activations.ACT2FN
    for name, ours in ACTIVATIONS.items():
        np.testing.assert_allclose(functions[name](torch.from_numpy(x)).numpy(), formulas[ours], atol=1e-7)


def test_kinds_of_values() -> None:
    """Ends of ranges, and what only looks like a number."""
    for kind, right, wrong in (
        (whole(1, 5), (1, 5), (0, 6, True, 1.0, "1", None)),
        (number(0, 1), (1, 1.0, 0.5, 1e-30), (0, 0.0, 1.01, True, float("nan"), "1")),
        (some(whole(0, 2), 2), ([], [0, 2], (1,)), ([0, 1, 2], [3], "01", 1, None)),
        (either(whole(0, 2), some(whole(0, 2), 2)), (2, [1, 2]), (3, [3], "x")),
        (KINDS["model_type"], ("", "x" * 99), ("x" * 100, 1)),
        (KINDS["tie_word_embeddings"], (True, False), (0, 1, "true")),
        (KINDS["hidden_size"], (1, 1 << 20), (0, (1 << 20) + 1)),
    ):
        assert [value for value in right if not kind.fits(value)] == [], kind.words
        assert [value for value in wrong if kind.fits(value)] == [], kind.words


def test_every_fourth_layer_has_full_attention_unless_told() -> None:
    config = without(config_of("qwen3_5"), "text_config", "layer_types")
    for interval in (None, 2, 3, 4, 8):
        config["text_config"].pop("full_attention_interval", None)
        config["text_config"] |= {} if interval is None else {"full_attention_interval": interval}
        kinds = theirs(config).text_config.layer_types
        expected = {layer for layer, kind in enumerate(kinds) if kind == "linear_attention"}
        assert described(config).decoder.linear_layers == expected, interval


@pytest.mark.parametrize("original", [None, 64])
def test_the_context_that_llama3_positions_were_stretched_from(original: int | None) -> None:
    config = config_of("llava")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {} if original is None else {"original_max_position_embeddings": original}
    config["text_config"] |= {"model_type": "llama", "rope_scaling": scaling}
    assert described(config).decoder.rope_scaling.original_context == (original or 4096)


def test_rotary_parameters_of_kinds_of_layers_are_refused() -> None:
    config = config_of("llava")
    config["text_config"]["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    with pytest.raises(InputError, match="rotary parameters of 'full_attention' alone"):
        described(config)


def test_rotary_parameters_of_all_versions() -> None:
    """The older name counts first, what stands beside it last, as in transformers."""
    config = config_of("llava")
    text = config["text_config"]
    cases = [(None, {"rope_theta": 2e5}), ({"type": "linear", "factor": 2.0}, None),
             ({"rope_type": "linear", "factor": 4.0}, {"rope_type": "default", "rope_theta": 7e4})]  # fmt: skip
    for beside in (None, 3e5):
        for older, newer in cases:
            text |= {"rope_scaling": older, "rope_parameters": newer, "rope_theta": beside}
            given = {**config, "text_config": {key: value for key, value in text.items() if value is not None}}
            rope, spec = theirs(given).text_config.rope_parameters, described(given).decoder
            assert spec.rope_theta == rope["rope_theta"], (beside, older, newer)
            assert (spec.rope_scaling.kind, spec.rope_scaling.factor) == (rope["rope_type"], rope.get("factor", 1.0))
