"""Which factors of a decoder can move from the inputs of matrices into what makes these inputs (AWQ's smoothing)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...exporters.spec import DecoderSpec

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Smoothing:
    """Matrices with one input, and the tensors whose rows make it: what one is multiplied by divides the other."""

    consumers: tuple[str, ...]  # matrices, by name
    producers: tuple[str, ...]  # a norm's weight, or a matrix and its bias
    tied: Indices | None = None  # the row of the producer that makes each input; None: the same
    halves: Mapping[str, tuple[Indices, ...]] = field(default_factory=dict)  # rows of a consumer that serve apart


def smoothings(spec: DecoderSpec, prefix: str) -> Iterator[Smoothing]:
    """All smoothings of a decoder whose tensors are below `prefix`.

    There is none for the output of a delta net: its input is gated behind a norm that all heads share.
    """
    for index in range(spec.layers):
        layer = f"{prefix}.layers.{index}"
        yield from _linear(layer) if index in spec.linear_layers else _attention(layer, spec)
        mlp = f"{layer}.mlp"
        norm = f"{layer}.post_attention_layernorm.weight"
        yield Smoothing((f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"), (norm,))
        yield Smoothing((f"{mlp}.down_proj.weight",), (f"{mlp}.up_proj.weight", f"{mlp}.up_proj.bias"))


def _attention(layer: str, spec: DecoderSpec) -> Iterator[Smoothing]:
    own = f"{layer}.self_attn"
    query = f"{own}.q_proj.weight"
    halves = {query: _halves(spec)} if spec.output_gate else {}
    consumers = (query, f"{own}.k_proj.weight", f"{own}.v_proj.weight")
    yield Smoothing(consumers, (f"{layer}.input_layernorm.weight",), halves=halves)
    rows = np.arange(spec.kv_heads * spec.head_dim).reshape(spec.kv_heads, 1, spec.head_dim)
    tied = np.broadcast_to(rows, (spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim)).ravel()
    yield Smoothing((f"{own}.o_proj.weight",), (f"{own}.v_proj.weight", f"{own}.v_proj.bias"), tied=tied)


def _halves(spec: DecoderSpec) -> tuple[Indices, ...]:
    """Rows of the queries and of the output's gate, which q_proj interleaves by head."""
    rows = np.arange(2 * spec.heads * spec.head_dim).reshape(spec.heads, 2, spec.head_dim)
    return rows[:, 0].ravel(), rows[:, 1].ravel()


def _linear(layer: str) -> Iterator[Smoothing]:
    own = f"{layer}.linear_attn"
    consumers = tuple(f"{own}.in_proj_{part}.weight" for part in ("qkv", "z", "b", "a"))
    yield Smoothing(consumers, (f"{layer}.input_layernorm.weight",))
