"""What is needed to synthesize a checkpoint of an architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .synth_layouts import SynthTensor

TINY_QWEN3 = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
              "num_hidden_layers": 4}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A folder of configuration files, its tensors, and what `tiny` changes."""

    folder: str
    layout: Callable[[Mapping[str, Any]], Iterator[SynthTensor]]
    tiny: Mapping[str, Mapping[str, Any]]  # by section of config.json, "" being the whole
    dtype: str = "BF16"
    float32: tuple[str, ...] = ()  # endings of the names of tensors that the published checkpoint keeps in float32
    model: str = ""  # the folder inside of config.json and the weights
    tiny_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what it changes in other files, by name

    @property
    def config(self) -> str:
        """The name of the configuration among the files."""
        return f"{self.model}/config.json".lstrip("/")

    def tensors(self, files: Mapping[str, Mapping[str, Any]]) -> Iterator[SynthTensor]:
        """The tensors with their types, from the files that `small_files` gives."""
        for tensor in self.layout(files[self.config]):
            yield replace(tensor, dtype="F32" if tensor.name.endswith(self.float32) else self.dtype)
