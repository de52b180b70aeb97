"""Gated delta nets in llama.cpp's order of heads.

A checkpoint keeps the value heads that share a key head side by side; llama.cpp repeats keys over value heads, so that
value head i uses key head i modulo their number. Where there are more value heads than key heads, everything that
has value heads is put into that order: rows of projections, channels of the convolution, columns of the output.
Source: `_LinearAttentionVReorderBase` in llama.cpp's conversion/qwen.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...checkpoint.lazy_tensors import LazyTensor
from ...formats.gguf.tensors import (
    Tensor,
    mapped,
    plain,
    whole,
)
from ...spec import DeltaNetSpec


def reordered(name: str, inner: str, source: LazyTensor, net: DeltaNetSpec) -> Tensor:
    """A tensor of a delta net, by the part of `inner` behind "linear_attn."."""
    part = inner.partition(".linear_attn.")[2]
    heads, values = _order(net, 1), _order(net, net.value_dim)
    behind_keys = np.concatenate([np.arange(2 * net.keys), 2 * net.keys + values])
    if part == "A_log":
        return whole(name, source, lambda x: -np.exp(x.astype(np.float64)).astype(np.float32)[heads])
    if part == "conv1d.weight":
        # The convolution [channels, 1, taps] as [channels, taps].
        tensor = whole(name, source, lambda x: x[behind_keys, 0])
        return Tensor(name, (source.shape[0], source.shape[2]), tensor.sources, tensor.rows)
    if part == "out_proj.weight":
        return replace(mapped(name, source, lambda rows: rows[:, values]), columns=values)
    rows = {"dt_bias": heads, "in_proj_a.weight": heads, "in_proj_b.weight": heads, "in_proj_z.weight": values,
            "in_proj_qkv.weight": behind_keys}  # fmt: skip
    return whole(name, source, lambda x: x[rows[part]]) if part in rows else plain(name, source)


def _order(net: DeltaNetSpec, size: int) -> NDArray[np.int64]:
    """Where each row of value heads of `size` rows comes from."""
    shape = (net.key_heads, net.value_heads // net.key_heads, size)
    return np.arange(net.value_heads * size).reshape(shape).transpose(1, 0, 2).reshape(-1)
