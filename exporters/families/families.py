"""The model families that lensmith compiles: one row for each model_type of a Hugging Face config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ...targets.errors import InputError
from ..checkpoint.folder import Checkpoint
from ..evidence.golden import record
from ..evidence.reference import empty_model
from . import (
    llava,
    llava_sections,
    prompts,
    qwen3_5,
    qwen3_vl,
    qwen_configs,
)
from .arlow import description as arlow
from .arlow import processors
from .arlow import traces_of_arlow as arlow_golden
from .family import Family

FAMILIES: Mapping[str, Family[Any]] = {
    qwen3_vl.MODEL_TYPE: Family(
        qwen3_vl.MODEL_TYPE,
        qwen3_vl.describe,
        qwen_configs.PREFIXES,
        qwen_configs.depths,
        qwen3_vl.graphs,
        qwen_configs.dropped,
        prompts.sections,
        record,
        empty_model,
    ),
    qwen3_5.MODEL_TYPE: Family(
        qwen3_5.MODEL_TYPE,
        qwen3_5.describe,
        qwen_configs.PREFIXES,
        qwen_configs.depths,
        qwen3_5.graphs,
        qwen3_5.dropped,
        prompts.sections,
        record,
        empty_model,
        qwen3_5.fit,
    ),
    qwen3_5.TEXT_MODEL_TYPE: Family(
        qwen3_5.TEXT_MODEL_TYPE,
        qwen3_5.describe_text,
        qwen3_5.TEXT_PREFIXES,
        qwen3_5.text_depths,
        qwen3_5.text_graphs,
        qwen3_5.text_dropped,
        prompts.text_sections,
        record,
        empty_model,
        qwen3_5.fit,
    ),
    llava.MODEL_TYPE: Family(
        llava.MODEL_TYPE,
        llava.describe,
        llava.PREFIXES,
        llava.depths,
        llava.graphs,
        llava.dropped,
        llava_sections.sections,
        record,
        empty_model,
    ),
    arlow.MODEL_TYPE: Family(
        arlow.MODEL_TYPE,
        arlow.describe,
        arlow.PREFIXES,
        arlow.depths,
        arlow.graphs,
        arlow.dropped,
        processors.sections,
        arlow_golden.record,
        arlow_golden.modules,
    ),
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
