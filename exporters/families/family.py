"""What a family of models must say about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..checkpoint.conventions import Conventions
from ..checkpoint.folder import Checkpoint
from ..checkpoint.tokenizer_files import SourceTokenizer
from ..evidence.recording import Recorder, record
from ..evidence.torch_loading import empty_model
from ..formats.gguf.gguf_family import GgufFamily
from ..graphs.dialect import Dialect
from ..graphs.graph_files import Graph, Prefixes
from ..spec import Spec
from ..storage.scheme import Policy
from ..synth.architecture import Architecture

Sections = dict[str, dict[str, Any]]  # of the manifest, by name
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Family(Generic[S]):
    """What a family must say about itself."""

    name: str
    describe: Callable[[dict[str, Any]], S]
    prefixes: Prefixes
    depths: Callable[[S], Mapping[str, int]]  # layers that must be there, by what the names of their tensors begin with
    graphs: Callable[[S, Policy, Dialect, dict[str, int]], tuple[Graph, ...]]  # the last: operator sets
    dropped: Callable[[Checkpoint, S], dict[str, str]]  # unused tensors with their reasons
    sections: Callable[[Checkpoint, SourceTokenizer, S, int | None], Sections]  # the last: largest image area in pixels
    conventions: Conventions  # of its files
    gguf: GgufFamily[Any] | None  # None: llama.cpp has no place for it
    synth: Mapping[str, Architecture] = field(default_factory=dict)  # that can be drawn at random, by name
    record: Recorder[Any] = record  # of golden traces
    modules: Callable[[Checkpoint, S], Any] = empty_model  # in PyTorch, without weights
    encoder: Callable[[Checkpoint, S, str, int], Any] | None = None  # in PyTorch, of a dtype and threads, if alone
    fit: Callable[[S, Checkpoint], S] = lambda spec, _: spec  # leaves out what the weights lack
