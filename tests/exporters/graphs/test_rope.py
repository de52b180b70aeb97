"""Rotary frequencies and the position row that turns each of them, next to transformers and by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.families.configs import Config
from lensmith.exporters.families.families import FAMILIES
from lensmith.exporters.families.text_decoders import describe_text
from lensmith.exporters.graphs.decoder import mrope_source
from lensmith.exporters.graphs.rope import NO_SCALING, RopeScaling, inverse_frequencies
from lensmith.exporters.spec import ModelSpec
from lensmith.exporters.tower_specs import VisionSpec
from lensmith.targets.errors import InputError

from tests.helpers import hf
from tests.paths import TINY

SECTIONS = [(24, 20, 20), (11, 11, 10), (2, 1, 1), (8, 4, 4), (4, 6, 6), (12, 1, 3), (12, 3, 1), (1, 1, 1), (2, 0, 1),
            (6, 5, 5), (10, 10, 12), (16, 0, 0)]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_rows_of_frequencies_are_those_of_transformers(section: tuple[int, int, int]) -> None:
    transformers = hf.import_transformers()
    import torch
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 1.0, "mrope_section": list(section)}  # all turn by 1 a position
    config = transformers.Qwen3VLTextConfig(head_dim=2 * sum(section), rope_parameters=rope)
    rows = torch.tensor([[[0]], [[1]], [[2]]])  # the position in each row is its number
    sines = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1), rows)[1][0, 0, : sum(section)]
    np.testing.assert_allclose(np.sin(mrope_source(section)), sines, atol=1e-6)


def test_rows_of_frequencies_by_hand() -> None:
    assert mrope_source((4, 2, 2)) == [0, 1, 2, 0, 1, 2, 0, 0]
    assert mrope_source((4, 1, 3)) == [0, 1, 2, 0, 0, 2, 0, 0]  # the third width would stand at 8, behind the end
    assert mrope_source((2, 3, 3)) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert mrope_source((3, 0, 0)) == [0, 0, 0]


NAMES = {"rope_type": "kind", "original_max_position_embeddings": "original_context"}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0,
     "original_max_position_embeddings": 500},
]  # fmt: skip


@pytest.mark.parametrize("theta", [1e4, 5e6])
@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_frequencies_are_those_of_transformers(rope: Mapping[str, Any], theta: float) -> None:
    transformers = hf.import_transformers()
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=512,
                                      rope_parameters={"rope_theta": theta, **rope})  # fmt: skip
    if rope["rope_type"] == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        expected: Any = LlamaRotaryEmbedding(config).inv_freq
    else:
        expected = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")[0]
    found = inverse_frequencies(
        64, theta, RopeScaling(**{NAMES.get(name, name): value for name, value in rope.items()})
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_stretched_by_hand() -> None:
    series = inverse_frequencies(8, 1e4, NO_SCALING)
    np.testing.assert_allclose(series, [1, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(8, 1e4, RopeScaling("linear", 4)), series / 4, rtol=1e-6)
    # Turns within 200 tokens: 31.8, 3.18, 0.318 and 0.0318.
    scaling = RopeScaling("llama3", factor=10, low_freq_factor=1, high_freq_factor=4, original_context=200)
    share = (200 * 0.1 / (2 * np.pi) - 1) / 3
    expected = [1, (1 - share) * 0.01 + share * 0.1, 0.001, 0.0001]
    np.testing.assert_allclose(inverse_frequencies(8, 1e4, scaling), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"kind": "yarn", "factor": 2}, "'yarn', not supported; expected 'default', 'linear', 'llama3'"),
        ({"kind": "linear", "factor": 0}, "expected positive factors"),
        ({"kind": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}, "high above low"),
        ({"kind": "llama3", "low_freq_factor": 0}, "high above low"),
    ],
)
def test_unusable_scalings(scaling: Mapping[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RopeScaling(**scaling)


TEXT = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "head_dim": 32,
        "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 512}  # fmt: skip
LLAMA = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PLACES: Mapping[str, Mapping[str, Any]] = {
    "older name": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 300.0},
    "both names": {"rope_scaling": {"rope_type": "linear", "factor": 3.0},
                   "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
    "an empty older name": {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    "base within and beside": {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0},
    "length within and beside": {"rope_parameters": {**LLAMA, "original_max_position_embeddings": 64},
                                 "original_max_position_embeddings": 128},
    "length beside": {"rope_parameters": LLAMA, "original_max_position_embeddings": 128},
    "length within": {"rope_parameters": {**LLAMA, "original_max_position_embeddings": 64}},
    "length nowhere": {"rope_parameters": LLAMA},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("name", PLACES)
def test_parameters_count_in_the_order_of_transformers(kind: str, name: str) -> None:
    transformers = hf.import_transformers()
    values = {**TEXT, "model_type": kind, **PLACES[name]}
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(values))).rope_parameters
    ours = describe_text(Config(values, "llava"), kind)
    assert ours.rope_theta == theirs["rope_theta"]
    scaling = ours.rope_scaling
    assert scaling.kind == theirs["rope_type"]
    assert scaling.kind == "default" or scaling.factor == theirs["factor"]
    assert scaling.kind != "llama3" or scaling.original_context == theirs["original_max_position_embeddings"]


STRETCHED = {"type": "yarn", "factor": 2.0, "mrope_section": [6, 5, 5]}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("text_config", "rope_scaling", STRETCHED, "rope_type is 'yarn'"),
        ("text_config", "rope_scaling", {"full_attention": {"rope_theta": 5.0}}, "of 'full_attention' alone"),
        ("vision_config", "rope_scaling", STRETCHED, "rope_type is 'yarn'"),
        ("text_config", "is_causal", False, "is_causal is False"),
    ],
)
def test_what_stretches_or_looks_ahead_is_refused(family: str, part: str, key: str, value: Any, message: str) -> None:
    """Also beside parameters of the newer name, which transformers then leaves unread."""
    config = json.loads((TINY / family / "config.json").read_text())
    config[part].setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})
    config[part][key] = value
    with pytest.raises(InputError, match=message):
        FAMILIES[family].describe(config)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_the_base_of_the_encoder_stands_in_either_place(family: str) -> None:
    transformers = hf.import_transformers()
    config = json.loads((TINY / family / "config.json").read_text())
    for change in ({"rope_theta": 300.0}, {"rope_parameters": {"rope_theta": 200.0, "rope_type": "default"}}):
        values = {**config, "vision_config": {**config["vision_config"], **change}}
        theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(values))).vision_config.rope_parameters
        spec = FAMILIES[family].describe(values)
        assert isinstance(spec, ModelSpec)
        assert isinstance(spec.vision, VisionSpec)
        assert spec.vision.rope_theta == theirs["rope_theta"] != 10000.0
