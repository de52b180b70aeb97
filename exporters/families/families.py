"""The model families that lensmith compiles: one row for each model_type of a Hugging Face config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ...targets.errors import InputError
from ..checkpoint.folder import Checkpoint
from .arlow import arlow
from .family import Family
from .llava import llava
from .qwen2_5_vl import qwen2_5_vl
from .qwen2_vl import qwen2_vl
from .qwen3_5 import qwen3_5
from .qwen3_vl import qwen3_vl
from .smolvlm import smolvlm

FAMILIES: Mapping[str, Family[Any]] = {
    family.name: family
    for family in (
        qwen3_vl.FAMILY,
        qwen3_5.FAMILY,
        qwen3_5.TEXT_FAMILY,
        llava.FAMILY,
        arlow.FAMILY,
        qwen2_5_vl.FAMILY,
        qwen2_vl.FAMILY,
        smolvlm.FAMILY,
        smolvlm.IDEFICS3,
    )
}


def find_family(checkpoint: Checkpoint) -> Family[Any]:
    """The family of a checkpoint by its model_type; InputError for an unknown one."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{checkpoint.path} has model_type {str(model_type)[:100]!r}, which lensmith cannot compile; "
            f"{_misspelt(str(model_type))}supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def _misspelt(model_type: str) -> str:
    """A question where a name can only be a typing error: other digits or words name other architectures."""
    digits = [name for name in FAMILIES if re.findall(r"\d", name) == re.findall(r"\d", model_type)]
    meant = difflib.get_close_matches(model_type.lower()[:100], digits, n=1, cutoff=0.87)
    return f"did you mean {meant[0]!r}? " if meant else ""
