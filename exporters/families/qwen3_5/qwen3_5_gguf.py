"""GGUF files of Qwen3.5: a decoder with delta nets and a draft head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
from gguf import MODEL_ARCH, MODEL_TENSOR

from ...checkpoint.lazy_tensors import LazyTensor
from ...formats.gguf.gguf_decoder import DecoderFile
from ...formats.gguf.gguf_family import GgufFamily
from ...formats.gguf.tensors import Tensor, mapped, plain
from ..qwen3_vl.qwen3_vl_gguf import vision_file
from .delta_net_order import reordered

# The draft head in llama.cpp's words; the tables of gguf-py have them for other architectures only.
NEXTN = {
    "fc": MODEL_TENSOR.NEXTN_EH_PROJ,
    "pre_fc_norm_embedding": MODEL_TENSOR.NEXTN_ENORM,
    "pre_fc_norm_hidden": MODEL_TENSOR.NEXTN_HNORM,
    "norm": MODEL_TENSOR.NEXTN_SHARED_HEAD_NORM,
}


class Qwen35Decoder(DecoderFile):
    """The decoder; its draft head is one more layer behind the others."""

    def name(self, inner: str, names: gguf.TensorNameMap) -> str:
        """The name in the file of a tensor of a text-only checkpoint."""
        if inner.startswith("mtp."):
            part, _, rest = inner.removeprefix("mtp.").partition(".")
            if part in NEXTN:
                return f"{gguf.TENSOR_NAMES[NEXTN[part]].format(bid=self.spec.decoder.layers)}.{rest}"
            inner = f"model.layers.{self.spec.decoder.layers}.{rest.partition('.')[2]}"
        return super().name(inner.replace(".dt_bias", ".dt_proj.bias"), names)

    def tensor(self, name: str, inner: str, source: LazyTensor) -> Tensor:
        """The tensor `name` of the file; llama.cpp multiplies by what norms add to 1."""
        decoder = self.spec.decoder
        if ".linear_attn." in inner and decoder.delta_net is not None:
            return reordered(name, inner, source, decoder.delta_net)
        if decoder.norm_offset and name.endswith("norm.weight"):
            return mapped(name, source, lambda rows: rows + decoder.norm_offset)
        return plain(name, source)

    def special(self) -> dict[str, Any]:
        """Hyperparameters that other architectures do not have."""
        decoder, net = self.spec.decoder, self.spec.decoder.delta_net
        if net is None:
            return {}
        # Of full attention layers: llama.cpp before recurrent_layers was known went by it.
        full = [layer for layer in range(decoder.layers) if layer not in decoder.linear_layers]
        return {
            "ssm.conv_kernel": net.kernel,
            "ssm.state_size": net.key_dim,
            "ssm.group_count": net.key_heads,
            "ssm.time_step_rank": net.value_heads,
            "ssm.inner_size": net.values,
            "attention.recurrent_layers": [layer in decoder.linear_layers for layer in range(self.blocks)],
            "full_attention_interval": full[0] + 1 if full else decoder.layers + 1,
            **({"nextn_predict_layers": self.blocks - decoder.layers} if decoder.mtp else {}),
        }


GGUF = GgufFamily(lambda spec, prefixes: Qwen35Decoder(spec, prefixes, MODEL_ARCH.QWEN35), vision_file)
TEXT_GGUF = replace(GGUF, vision=None)
