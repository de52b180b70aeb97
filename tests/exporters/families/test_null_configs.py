"""Null in a config: refused where transformers refuses it, and else what transformers makes of it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from lensmith.exporters.evidence.torch_loading import import_torch
from lensmith.exporters.families.families import FAMILIES
from lensmith.targets.errors import InputError

from tests.paths import TINY

pytest.importorskip("torch", reason="needs lensmith[torch]")
_, transformers = import_torch()
# Of fields that transformers reads: it ends on the first when it makes the model, and lensmith needs the others.
SECTIONS = {
    ("qwen3_vl", "text_config"): {"rope_theta", "rope_scaling"}, ("qwen3_vl", "vision_config"): set(),
    ("qwen3_vl", ""): set(),
    ("qwen3_5", "text_config"): {"rope_parameters"}, ("qwen3_5", "vision_config"): set(), ("qwen3_5", ""): set(),
    ("llava", "text_config"): {"rope_theta"}, ("llava", "vision_config"): {"image_size", "patch_size"},
    ("llava", ""): set(),
}  # fmt: skip
CASES = [(*place, None) for place in SECTIONS] + [("llava", "text_config", "llama"), ("llava", "text_config", "qwen2")]


def with_null(family: str, part: str, key: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((TINY / family / "config.json").read_text())
    (config[part] if part else config)[key] = None
    return config


def is_read(config: dict[str, Any]) -> bool:
    """Whether transformers takes it."""
    given = copy.deepcopy(config)
    try:
        transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    except ImportError:
        raise
    except Exception:  # its own of several kinds
        return False
    return True


def fields(family: str, part: str) -> list[str]:
    """All that the tiny model's file and transformers' class have in a section, but for sections themselves."""
    config: dict[str, Any] = json.loads((TINY / family / "config.json").read_text())
    whole = transformers.AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
    found = {**(whole[part] if part else whole), **(config[part] if part else config)}
    return sorted(key for key in found if (part or key != "model_type") and not key.endswith("_config"))


@pytest.mark.parametrize(("family", "part", "kind"), CASES)
def test_null_is_taken_where_transformers_takes_it(family: str, part: str, kind: str | None) -> None:
    describe = FAMILIES[family].describe
    for key in fields(family, part):
        config = with_null(family, part, key)
        if kind is not None and key != "model_type":
            config[part]["model_type"] = kind
        if not is_read(config):
            with pytest.raises(InputError, match=f"config value {key} is null|config.json has no {key};"):
                describe(config)
        elif key not in SECTIONS[family, part] and (kind, key) != ("qwen2", "head_dim"):
            spec = describe(config)
            if (part, key) == ("text_config", "num_key_value_heads"):
                assert spec.decoder.kv_heads == spec.decoder.heads


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_rotary_frequencies_of_null_are_refused(family: str) -> None:
    """transformers reads them and ends when it makes the model."""
    with pytest.raises(InputError, match="rope_theta"):
        FAMILIES[family].describe(with_null(family, "text_config", "rope_theta"))
