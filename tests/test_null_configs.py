"""Null in a config: refused where transformers refuses it, and else what transformers makes of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.models import FAMILIES
from lensmith.targets.errors import InputError

transformers = pytest.importorskip("transformers", reason="needs lensmith[torch]")
TINY = Path(__file__).parent / "tiny_vlm"
READ = {  # fields whose value is followed, by section
    "qwen3_vl": {
        "text_config": ("attention_bias", "head_dim", "hidden_act", "num_key_value_heads", "rms_norm_eps", "use_cache",
                        "eos_token_id", "tie_word_embeddings"),
        "vision_config": ("deepstack_visual_indexes", "hidden_act", "in_channels"),
        "": ("tie_word_embeddings", "vision_start_token_id", "vision_end_token_id"),
    },
    "qwen3_5": {
        "text_config": ("attention_bias", "hidden_act", "layer_types", "rms_norm_eps", "tie_word_embeddings"),
        "vision_config": ("deepstack_visual_indexes", "hidden_act", "in_channels"),
        "": ("tie_word_embeddings",),
    },
    "llava": {
        "text_config": ("attention_bias", "head_dim", "hidden_act", "model_type", "num_key_value_heads",
                        "rope_scaling", "tie_word_embeddings", "use_sliding_window"),
        "vision_config": ("hidden_act", "model_type", "projection_dim"),
        "": ("image_token_index", "multimodal_projector_bias", "projector_hidden_act", "tie_word_embeddings",
             "vision_feature_layer", "vision_feature_select_strategy"),
    },
}  # fmt: skip
CASES = [(family, part, key) for family, parts in READ.items() for part, keys in parts.items() for key in keys]


def with_null(family: str, part: str, key: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((TINY / family / "config.json").read_text())
    (config[part] if part else config)[key] = None
    return config


def is_read(config: dict[str, Any]) -> bool:
    """Whether transformers takes it."""
    given = copy.deepcopy(config)
    try:
        transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    except Exception:  # its own of several kinds
        return False
    return True


@pytest.mark.parametrize(("family", "part", "key"), CASES)
def test_null_is_taken_where_transformers_takes_it(family: str, part: str, key: str) -> None:
    config = with_null(family, part, key)
    describe = FAMILIES[family].describe
    if is_read(config):
        spec = describe(config)
        if key == "num_key_value_heads":
            assert spec.decoder.kv_heads == spec.decoder.heads
        return
    with pytest.raises(InputError, match=f"config value {key} is null"):
        describe(config)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_rotary_frequencies_of_null_are_refused(family: str) -> None:
    """transformers reads them and ends when it makes the model."""
    with pytest.raises(InputError, match="rope_theta"):
        FAMILIES[family].describe(with_null(family, "text_config", "rope_theta"))
