"""The model families that lensmith compiles: one row for each model_type of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import llava_sections, prompts
from ..blocks import Dialect
from ..checkpoint import Checkpoint
from ..graphs import Graph, Prefixes
from ..names import Aliases
from ..scheme import Policy
from ..spec import ModelSpec
from . import llava, qwen3_5, qwen3_vl, qwen_configs

Sections = dict[str, dict[str, Any]]  # of the manifest, by name


@dataclass(frozen=True)
class Family:
    """What a family must say about itself."""

    name: str
    describe: Callable[[dict[str, Any]], ModelSpec]
    prefixes: Prefixes
    graphs: Callable[[ModelSpec, Policy, Dialect, dict[str, int]], tuple[Graph, ...]]  # the last: operator sets
    dropped: Callable[[Checkpoint, ModelSpec], dict[str, str]]  # unused tensors with their reasons
    sections: Callable[[Checkpoint, ModelSpec, int | None], Sections]  # for the largest image area in pixels
    fit: Callable[[ModelSpec, Checkpoint], ModelSpec] = lambda spec, _: spec  # leaves out what the weights lack
    aliases: Aliases = field(default_factory=dict)  # of the prefixes


FAMILIES = {
    qwen3_vl.MODEL_TYPE: Family(
        qwen3_vl.MODEL_TYPE,
        qwen3_vl.describe,
        qwen_configs.PREFIXES,
        qwen3_vl.graphs,
        qwen_configs.dropped,
        prompts.sections,
    ),
    qwen3_5.MODEL_TYPE: Family(
        qwen3_5.MODEL_TYPE,
        qwen3_5.describe,
        qwen_configs.PREFIXES,
        qwen3_5.graphs,
        qwen3_5.dropped,
        prompts.sections,
        qwen3_5.fit,
    ),
    llava.MODEL_TYPE: Family(
        llava.MODEL_TYPE,
        llava.describe,
        llava.PREFIXES,
        llava.graphs,
        llava.dropped,
        llava_sections.sections,
        aliases=llava.ALIASES,
    ),
}
