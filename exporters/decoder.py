"""Graph description of the Qwen3 decoder: embedding, grouped-query attention with a cache, gated MLP, output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from .blocks import Angles, Cache, Dialect, Linear, Op, RMSNorm, Table, Value
from .scheme import Policy
from .spec import DecoderSpec


@dataclass(frozen=True)
class DecoderInputs:
    """Values of the decoder's inputs; past holds (key, value) [batch, kv_heads, capacity, head_dim] of each layer."""

    input_ids: Value  # int64 [batch, seq]
    image_features: Value  # float32 [image_tokens, hidden], for the image tokens of input_ids in order
    deepstack_features: Value | None  # float32 [taps, image_tokens, hidden]
    position_ids: Value  # int64 [3, batch, seq]
    past_lengths: Value  # int32 [batch]
    num_logits: Value  # int64 [1]
    past: Sequence[tuple[Value, Value]]
    taps: int = 0


def mrope_source(section: tuple[int, int, int]) -> list[int]:
    """Which of the three position rows (time, height, width) turns each frequency, interleaved as Qwen3-VL does.

    Height takes every third frequency from 1 and width every third from 2, as many as their sections; time the rest.
    """
    source = [0] * sum(section)
    for axis in (1, 2):
        for index in range(axis, 3 * section[axis], 3):
            source[index] = axis
    return source


def token_angles(op: Op, position_ids: Value, spec: DecoderSpec) -> Angles:
    """M-RoPE angles of the tokens of this step: no table, so any context length costs nothing."""
    half = spec.head_dim // 2
    inverse = 1.0 / spec.rope_theta ** (np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim))
    pick = np.zeros((3, half), np.float32)
    pick[mrope_source(spec.mrope_section), np.arange(half)] = inverse.astype(np.float32)
    frequencies = op.initializer(ir.tensor(pick[:, None, None, :]), name="inverse_frequencies")
    positions = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [3])
    # Exactly one of the three products is not zero, so the sum is exact.
    angles = op.Reshape(op.ReduceSum(op.Mul(positions, frequencies), [0], keepdims=0), [-1, half])
    shape = op.Shape(position_ids, start=1)
    rows = op.Reshape(op.Range(0, op.ReduceProd(shape, keepdims=0), 1), shape)
    return Angles(op.Cos(angles), op.Sin(angles), rows)


class HeadNorm(nn.Module):
    """RMS norm of each head of [batch, seq, heads * head_dim]."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec) -> None:
        super().__init__()
        self.dialect, self.eps, self.head_dim = dialect, spec.norm_eps, spec.head_dim
        self.weight = nn.Parameter([spec.head_dim])

    def forward(self, op: Op, x: Value, heads: int) -> Value:
        split = op.Reshape(x, [0, 0, heads, self.head_dim])
        return op.Reshape(self.dialect.rms_norm(op, split, self.weight, self.eps), [0, 0, heads * self.head_dim])


class Attention(nn.Module):
    """Grouped-query attention with qk-norm and rotary positions."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.spec = dialect, spec
        query, kv, bias = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.attention_bias
        scheme = policy.scheme("decoder", spec.hidden)
        self.q_proj = Linear(dialect, spec.hidden, query, scheme, bias=bias)
        self.k_proj = Linear(dialect, spec.hidden, kv, scheme, bias=bias)
        self.v_proj = Linear(dialect, spec.hidden, kv, scheme, bias=bias)
        self.o_proj = Linear(dialect, query, spec.hidden, policy.scheme("decoder", query), bias=bias)
        self.q_norm = HeadNorm(dialect, spec)
        self.k_norm = HeadNorm(dialect, spec)

    def forward(self, op: Op, x: Value, angles: Angles, cache: Cache) -> tuple[Value, Value, Value]:
        """Attention output before the output projection [batch, seq, heads * head_dim], present key and value."""
        heads, kv_heads = self.spec.heads, self.spec.kv_heads
        q = self.dialect.rotary(op, self.q_norm(op, self.q_proj(op, x), heads), angles, heads)
        k = self.dialect.rotary(op, self.k_norm(op, self.k_proj(op, x), kv_heads), angles, kv_heads)
        return self.dialect.cached_attention(op, q, k, self.v_proj(op, x), cache, heads, kv_heads)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.act = dialect, spec.activation
        scheme = policy.scheme("decoder", spec.hidden)
        self.gate_proj = Linear(dialect, spec.hidden, spec.intermediate, scheme, bias=False)
        self.up_proj = Linear(dialect, spec.hidden, spec.intermediate, scheme, bias=False)
        down = policy.scheme("decoder", spec.intermediate)
        self.down_proj = Linear(dialect, spec.intermediate, spec.hidden, down, bias=False)

    def forward(self, op: Op, x: Value) -> Value:
        gate = self.dialect.activation(op, self.gate_proj(op, x), self.act)
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class Layer(nn.Module):
    """One decoder layer. Carries the residual stream and the last addition to it, so that norms can fuse them."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dialect, spec.hidden, spec.norm_eps)
        self.post_attention_layernorm = RMSNorm(dialect, spec.hidden, spec.norm_eps)
        self.self_attn = Attention(dialect, spec, policy)
        self.mlp = MLP(dialect, spec, policy)

    def forward(
        self, op: Op, stream: Value, delta: Value | None, angles: Angles, cache: Cache, first: Value | None
    ) -> tuple[Value, Value, Value, Value]:
        """Stream, addition to it, present key and value. Positions before `first` are left out behind attention."""
        normed, stream = self.input_layernorm(op, stream, delta)
        attended, key, value = self.self_attn(op, normed, angles, cache)
        if first is not None:
            attended, stream = (op.Slice(x, first, [2**62], [1]) for x in (attended, stream))
        projected = self.self_attn.o_proj(op, attended)
        normed, stream = self.post_attention_layernorm(op, stream, projected)
        return stream, self.mlp(op, normed), key, value


class Decoder(nn.Module):
    """Token ids and image features to logits of the last positions."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy, image_token_id: int) -> None:
        super().__init__()
        self.dialect, self.spec, self.image_token_id = dialect, spec, image_token_id
        self.embed_tokens = Table(spec.vocab, spec.hidden, policy.scheme("decoder", spec.hidden), shared=spec.tied)
        self.layers = nn.ModuleList([Layer(dialect, spec, policy) for _ in range(spec.layers)])
        self.norm = RMSNorm(dialect, spec.hidden, spec.norm_eps)

    def forward(self, op: Op, inputs: DecoderInputs, head: Linear | None) -> tuple[Value, list[tuple[Value, Value]]]:
        """logits [batch, num_logits, vocab] and the present (key, value) of each layer. A tied model has no `head`."""
        places = op.Transpose(op.NonZero(op.Equal(inputs.input_ids, [self.image_token_id])), perm=[1, 0])
        embedded = self.dialect.gather_rows(op, inputs.input_ids, self.embed_tokens)
        stream, delta = op.ScatterND(embedded, places, inputs.image_features), None
        angles, lengths = token_angles(op, inputs.position_ids, self.spec), self._lengths(op, inputs)
        first = op.Sub(op.Shape(inputs.input_ids, start=1), inputs.num_logits)
        present = []
        for index, layer in enumerate(self.layers):
            cut = first if index == self._last_full_layer(inputs) else None
            cache = Cache(*inputs.past[index], *lengths)
            stream, delta, key, value = layer(op, stream, delta, angles, cache, cut)
            if index < inputs.taps:
                feature = op.Gather(inputs.deepstack_features, index, axis=0)
                stream, delta = op.ScatterND(op.Add(stream, delta), places, feature, reduction="add"), None
            present.append((key, value))
        hidden = self.norm(op, stream, delta)[0]
        if self._last_full_layer(inputs) is None:
            hidden = op.Slice(hidden, first, [2**62], [1])
        return self._logits(op, hidden, head), present

    def _last_full_layer(self, inputs: DecoderInputs) -> int | None:
        """The layer behind whose attention only the positions with logits matter, unless DeepStack adds to it."""
        last = self.spec.layers - 1
        return last if inputs.taps <= last else None

    def _lengths(self, op: Op, inputs: DecoderInputs) -> tuple[Value, Value]:
        """Index of the last position of each batch row and the longest length, after this step."""
        new = op.Cast(op.Shape(inputs.input_ids, start=1), to=ir.DataType.INT32)
        total = op.Add(inputs.past_lengths, new)
        one = op.Constant(value=ir.tensor(np.array([1], np.int32)))
        return op.Sub(total, one), op.ReduceMax(total, keepdims=0)

    def _logits(self, op: Op, hidden: Value, head: Linear | None) -> Value:
        if head is not None:
            return head(op, hidden)
        return self.dialect.matmul(op, hidden, self.embed_tokens.weight, None)
