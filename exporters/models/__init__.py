"""The model families that lensmith compiles: one row for each model_type of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..graphs import Prefixes
from ..spec import ModelSpec
from . import qwen3_vl


@dataclass(frozen=True)
class Family:
    """What a family must say about itself."""

    name: str
    describe: Callable[[dict[str, Any]], ModelSpec]
    prefixes: Prefixes
    dropped: Callable[[Checkpoint, ModelSpec], dict[str, str]]


FAMILIES = {
    qwen3_vl.MODEL_TYPE: Family(qwen3_vl.MODEL_TYPE, qwen3_vl.describe, qwen3_vl.PREFIXES, qwen3_vl.dropped),
}
