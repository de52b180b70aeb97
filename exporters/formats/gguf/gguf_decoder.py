"""Language models as llama.cpp knows them: architecture, hyperparameters and tensor names of a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, MODEL_TENSOR
from numpy.typing import NDArray

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...graphs.graph_files import Prefixes
from ...graphs.rope import NO_SCALING
from ...spec import DecoderSpec, ModelSpec
from .gguf_delta_net import reordered
from .tensors import (
    Tensor,
    mapped,
    plain,
    whole,
)

SUFFIXES = (".weight", ".bias")
# The draft head in llama.cpp's words; the tables of gguf-py have them for other architectures only.
NEXTN = {
    "fc": MODEL_TENSOR.NEXTN_EH_PROJ,
    "pre_fc_norm_embedding": MODEL_TENSOR.NEXTN_ENORM,
    "pre_fc_norm_hidden": MODEL_TENSOR.NEXTN_HNORM,
    "norm": MODEL_TENSOR.NEXTN_SHARED_HEAD_NORM,
}


def architecture(spec: ModelSpec) -> MODEL_ARCH:
    """The architecture of a decoder; InputError for those without a place in llama.cpp."""
    decoder = spec.decoder
    if decoder.delta_net is not None or decoder.output_gate:
        return MODEL_ARCH.QWEN35
    if decoder.mrope_section is not None:
        return MODEL_ARCH.QWEN3VL
    biased = decoder.qkv_bias or decoder.output_bias or decoder.mlp_bias
    if not biased and decoder.rope_scaling == NO_SCALING:
        return MODEL_ARCH.QWEN3 if decoder.qk_norm else MODEL_ARCH.LLAMA
    raise InputError(
        f"the text decoder of this {spec.family} checkpoint has biases or scaled rotary positions, and lensmith writes "
        "qwen3 and llama decoders without them as GGUF; export it with --format onnx"
    )


@dataclass(frozen=True)
class DecoderFile:
    """The language model file of a checkpoint."""

    spec: ModelSpec
    prefixes: Prefixes

    @property
    def arch(self) -> MODEL_ARCH:
        return architecture(self.spec)

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
                yield self._tensor(self._name(inner, names), inner, source)

    def _inner(self, name: str) -> str | None:
        """The name as a text-only checkpoint would have it; None for the vision encoder's."""
        text, head, mtp = self.prefixes.text, self.prefixes.head, self.prefixes.mtp
        if name.startswith(f"{text}."):
            return "model" + name.removeprefix(text)
        if name.startswith(f"{head}."):
            return "lm_head" + name.removeprefix(head)
        return name if mtp and name.startswith(f"{mtp}.") else None

    def _name(self, inner: str, names: gguf.TensorNameMap) -> str:
        if inner.startswith("mtp."):
            part, _, rest = inner.removeprefix("mtp.").partition(".")
            if part in NEXTN:
                return f"{gguf.TENSOR_NAMES[NEXTN[part]].format(bid=self.spec.decoder.layers)}.{rest}"
            inner = f"model.layers.{self.spec.decoder.layers}.{rest.partition('.')[2]}"
        found = names.get_name(inner.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=SUFFIXES)
        if found is None:
            raise InputError(f"llama.cpp has no place for the tensor {inner!r} in {gguf.MODEL_ARCH_NAMES[self.arch]}")
        return found

    def _tensor(self, name: str, inner: str, source: LazyTensor) -> Tensor:
        decoder = self.spec.decoder
        if ".linear_attn." in inner and decoder.delta_net is not None:
            return reordered(name, inner, source, decoder.delta_net)
        if self.arch == MODEL_ARCH.LLAMA and (
            heads := {"q": decoder.heads, "k": decoder.kv_heads}.get(_projection(inner))
        ):
            return whole(name, source, lambda x: _pairs_together(x, heads))
        if decoder.norm_offset and name.endswith("norm.weight"):
            return mapped(name, source, lambda rows: rows + decoder.norm_offset)
        return plain(name, source)

    def metadata(self) -> dict[str, Any]:
        """The hyperparameters, by key."""
        decoder, prefix = self.spec.decoder, gguf.MODEL_ARCH_NAMES[self.arch]
        values = {**_common(decoder, self.blocks), **_rotary(decoder), **self._special()}
        return {f"{prefix}.{key}": value for key, value in values.items()}

    def _special(self) -> dict[str, Any]:
        decoder = self.spec.decoder
        if self.arch == MODEL_ARCH.QWEN3VL:
            return {"n_deepstack_layers": self.spec.taps}
        return {} if decoder.delta_net is None else _delta_net(decoder, self.blocks)


def _projection(inner: str) -> str:
    """The letter of a projection of attention, such as "q"."""
    part = inner.rpartition(".self_attn.")[2]
    return part.removesuffix("_proj.weight") if part.endswith("_proj.weight") else ""


def _pairs_together(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys in llama.cpp's order for llama: what is rotated together lies side by side.

    A checkpoint has it half a head apart. Source: `permute` of LlamaModel in llama.cpp's conversion/llama.py.
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


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


def _delta_net(decoder: DecoderSpec, blocks: int) -> dict[str, Any]:
    net = decoder.delta_net
    assert net is not None
    return {
        "ssm.conv_kernel": net.kernel,
        "ssm.state_size": net.key_dim,
        "ssm.group_count": net.key_heads,
        "ssm.time_step_rank": net.value_heads,
        "ssm.inner_size": net.values,
        "attention.recurrent_layers": [layer in decoder.linear_layers for layer in range(blocks)],
        "full_attention_interval": _interval(decoder),
        **({"nextn_predict_layers": blocks - decoder.layers} if decoder.mtp else {}),
    }


def _interval(decoder: DecoderSpec) -> int:
    """Of full attention layers: llama.cpp before recurrent_layers was known went by it."""
    full = [layer for layer in range(decoder.layers) if layer not in decoder.linear_layers]
    return full[0] + 1 if full else decoder.layers + 1
