"""Language models as llama.cpp knows them: hyperparameters and tensor names of a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...graphs.graph_files import Prefixes
from ...spec import DecoderSpec, ModelSpec
from .tensors import Tensor, plain

SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class DecoderFile:
    """The language model file of a checkpoint, in an architecture of llama.cpp; families add what is theirs."""

    spec: ModelSpec
    prefixes: Prefixes
    arch: MODEL_ARCH

    @property
    def blocks(self) -> int:
        """Layers, the draft head's among them."""
        return self.spec.decoder.layers + int(self.spec.decoder.mtp)

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        """All tensors of the file, in the order of their sources."""
        names = gguf.get_tensor_name_map(self.arch, self.blocks)
        for source in sources:
            inner = self._inner(source.name)
            if inner is not None:
                yield self.tensor(self.name(inner, names), inner, source)

    def _inner(self, name: str) -> str | None:
        """The name as a text-only checkpoint would have it; None for the vision encoder's."""
        text, head, mtp = self.prefixes.text, self.prefixes.head, self.prefixes.mtp
        if name.startswith(f"{text}."):
            return "model" + name.removeprefix(text)
        if name.startswith(f"{head}."):
            return "lm_head" + name.removeprefix(head)
        return name if mtp and name.startswith(f"{mtp}.") else None

    def name(self, inner: str, names: gguf.TensorNameMap) -> str:
        """The name in the file of a tensor of a text-only checkpoint."""
        found = names.get_name(inner, try_suffixes=SUFFIXES)
        if found is None:
            raise InputError(f"llama.cpp has no place for the tensor {inner!r} in {gguf.MODEL_ARCH_NAMES[self.arch]}")
        return found

    def tensor(self, name: str, inner: str, source: LazyTensor) -> Tensor:
        """The tensor `name` of the file."""
        return plain(name, source)

    def metadata(self) -> dict[str, Any]:
        """The hyperparameters, by key."""
        decoder, prefix = self.spec.decoder, gguf.MODEL_ARCH_NAMES[self.arch]
        values = {**_common(decoder, self.blocks), **_rotary(decoder), **self.special()}
        return {f"{prefix}.{key}": value for key, value in values.items()}

    def special(self) -> dict[str, Any]:
        """Hyperparameters that other architectures do not have."""
        return {}


def _common(decoder: DecoderSpec, blocks: int) -> dict[str, Any]:
    return {
        "block_count": blocks,
        "context_length": decoder.context,
        "embedding_length": decoder.hidden,
        "feed_forward_length": decoder.intermediate,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
        "attention.key_length": decoder.head_dim,
        "attention.value_length": decoder.head_dim,
        "attention.layer_norm_rms_epsilon": float(decoder.norm_eps),
        "rope.freq_base": float(decoder.rope_theta),
    }


def _rotary(decoder: DecoderSpec) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if decoder.mrope_section is not None:
        values["rope.dimension_sections"] = [*decoder.mrope_section, 0]  # time, height, width, none
    if decoder.rotary_dim is not None:
        values["rope.dimension_count"] = decoder.rotated
    return values
