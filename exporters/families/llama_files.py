"""Llama and Qwen3 decoders inside other models as llama.cpp's files have them."""

from __future__ import annotations

import numpy as np
from gguf import MODEL_ARCH
from numpy.typing import NDArray

from ...targets.errors import InputError
from ..checkpoint.lazy_tensors import LazyTensor
from ..formats.gguf.gguf_decoder import DecoderFile
from ..formats.gguf.tensors import Tensor, plain, whole
from ..graphs.graph_files import Prefixes
from ..graphs.rope import NO_SCALING
from ..spec import ModelSpec


class LlamaDecoderFile(DecoderFile):
    """A decoder whose queries and keys stand in llama.cpp's order for Llama."""

    def tensor(self, name: str, inner: str, source: LazyTensor) -> Tensor:
        """The tensor `name` of the file."""
        decoder, part = self.spec.decoder, inner.rpartition(".self_attn.")[2]
        heads = {"q_proj.weight": decoder.heads, "k_proj.weight": decoder.kv_heads}.get(part)
        return plain(name, source) if heads is None else whole(name, source, lambda x: _pairs_together(x, heads))


def _pairs_together(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys in llama.cpp's order for llama: what is rotated together lies side by side.

    A checkpoint has it half a head apart. Source: `permute` of LlamaModel in llama.cpp's conversion/llama.py.
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def decoder_file(spec: ModelSpec, prefixes: Prefixes) -> DecoderFile:
    """The decoder file of a model; InputError for one without a place in llama.cpp."""
    decoder = spec.decoder
    if decoder.qkv_bias or decoder.output_bias or decoder.mlp_bias or decoder.rope_scaling != NO_SCALING:
        raise InputError(
            f"the text decoder of this {spec.family} checkpoint has biases or scaled rotary positions, and lensmith "
            "writes qwen3 and llama decoders without them as GGUF; export it with --format onnx"
        )
    if decoder.qk_norm:
        return DecoderFile(spec, prefixes, MODEL_ARCH.QWEN3)
    return LlamaDecoderFile(spec, prefixes, MODEL_ARCH.LLAMA)
