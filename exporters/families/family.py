"""The model families that lensmith compiles: one row for each model_type of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..checkpoint.folder import Checkpoint
from ..checkpoint.tokenizer_files import SourceTokenizer
from ..evidence.golden import Recorder, record
from ..evidence.reference import empty_model
from ..graphs.blocks import Dialect
from ..graphs.graph_files import Graph, Prefixes
from ..spec import ModelSpec
from ..storage.scheme import Policy
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
from .arlow.arlow_spec import ArlowSpec

Sections = dict[str, dict[str, Any]]  # of the manifest, by name
Spec = ModelSpec | ArlowSpec
S = TypeVar("S", ModelSpec, ArlowSpec)


@dataclass(frozen=True)
class Family(Generic[S]):
    """What a family must say about itself."""

    name: str
    describe: Callable[[dict[str, Any]], S]
    prefixes: Prefixes
    graphs: Callable[[S, Policy, Dialect, dict[str, int]], tuple[Graph, ...]]  # the last: operator sets
    dropped: Callable[[Checkpoint, S], dict[str, str]]  # unused tensors with their reasons
    sections: Callable[[Checkpoint, SourceTokenizer, S, int | None], Sections]  # the last: largest image area in pixels
    record: Recorder[S]  # of golden traces
    modules: Callable[[Checkpoint, S], Any]  # in PyTorch, without weights
    fit: Callable[[S, Checkpoint], S] = lambda spec, _: spec  # leaves out what the weights lack


FAMILIES: Mapping[str, Family[Any]] = {
    qwen3_vl.MODEL_TYPE: Family(
        qwen3_vl.MODEL_TYPE,
        qwen3_vl.describe,
        qwen_configs.PREFIXES,
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
        arlow.graphs,
        arlow.dropped,
        processors.sections,
        arlow_golden.record,
        arlow_golden.modules,
    ),
}
