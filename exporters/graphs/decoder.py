"""Graph description of text decoders: embedding, attention with a cache or a delta net, gated MLP, output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from ..spec import DecoderSpec
from ..storage.scheme import Policy
from .blocks import (
    Angles,
    Cache,
    Dialect,
    Linear,
    Op,
    RMSNorm,
    Table,
    Value,
    offset,
)
from .delta_net import DeltaNet
from .kv_cache import Scales
from .rope import inverse_frequencies


@dataclass(frozen=True)
class DecoderInputs:
    """Values of the decoder's inputs; `past` holds the two states of each layer, see states.py."""

    input_ids: Value  # int64 [batch, seq]
    image_features: Value  # float32 [image_tokens, hidden], for the image tokens of input_ids in order
    deepstack_features: Value | None  # float32 [taps, image_tokens, hidden]
    position_ids: Value  # int64 [3, batch, seq] with M-RoPE, else [batch, seq]
    past_lengths: Value  # int32 [batch]
    num_logits: Value  # int64 [1], or as `Dialect.choose` has it
    past: Sequence[tuple[Value, Value]]
    taps: int = 0
    num_hidden_states: Value | None = None  # as num_logits, which counts from these; None: no more than these
    lengths: tuple[Value, Value] | None = None  # `StepTables.last` and `.total`, where dialects want them as inputs


@dataclass(frozen=True)
class MtpInputs:
    """Values of the inputs of a head for multi-token prediction.

    Tokens and positions are one further than the hidden states beside them.
    """

    input_ids: Value  # int64 [batch, seq]
    image_features: Value  # float32 [image_tokens, hidden], for the image tokens of input_ids in order
    hidden_states: Value  # float32 [batch, seq, hidden]
    position_ids: Value  # int64 [3, batch, seq]
    past_lengths: Value  # int32 [batch]
    num_logits: Value  # int64 [1], or as `Dialect.choose` has it
    past: tuple[Value, Value]
    lengths: tuple[Value, Value] | None = None  # as of DecoderInputs


@dataclass(frozen=True)
class DecoderOutputs:
    """Values of the decoder's outputs."""

    logits: Value  # float32 [batch, num_logits, vocab]
    hidden_states: Value  # float32 [batch, num_hidden_states, hidden], of the last positions behind the last norm
    present: list[tuple[Value, Value]]  # the two states of each layer


@dataclass(frozen=True)
class StepTables:
    """What all attention layers share: rotary angles, and lengths behind this step."""

    angles: Angles
    past: Value  # int32 [batch], the length before it
    last: Value  # int32 [batch], index of the last position
    total: Value  # int32 scalar, the longest length


def mrope_source(section: tuple[int, int, int], *, interleaved: bool = True) -> list[int]:
    """Which of the three position rows (time, height, width) turns each frequency: one behind the other, or mixed.

    Interleaved as in Qwen3-VL, height takes every third frequency from 1 and width every third from 2, as many as their
    sections; time the rest.
    """
    if not interleaved:
        return [axis for axis, count in enumerate(section) for _ in range(count)]
    source = [0] * sum(section)
    for axis in (1, 2):
        for index in range(axis, min(3 * section[axis], len(source)), 3):
            source[index] = axis
    return source


def token_angles(op: Op, dialect: Dialect, position_ids: Value, spec: DecoderSpec) -> Angles:
    """Rotary angles of the tokens of this step: no table, so any context length costs nothing."""
    size, half = spec.rotated, spec.rotated // 2
    inverse = inverse_frequencies(size, spec.rope_theta, spec.rope_scaling)
    pick = np.zeros((3, 1, 1, half), np.float32)
    if spec.mrope_section is None:
        position_ids, pick = op.Unsqueeze(position_ids, [0]), inverse[None, None, None]
    else:
        pick[mrope_source(spec.mrope_section, interleaved=spec.mrope_interleaved), 0, 0, np.arange(half)] = inverse
    frequencies = op.initializer(ir.tensor(pick), name="inverse_frequencies")
    positions = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [3])
    # At most one of the products of an axis is not zero, so the sum is exact.
    angles = op.Reshape(op.ReduceSum(op.Mul(positions, frequencies), [0], keepdims=0), [-1, half])
    shape = op.Shape(position_ids, start=1)
    rows = op.Reshape(op.Range(0, op.ReduceProd(shape, keepdims=0), 1), shape)
    cos, sin = (dialect.enter(op, turned) for turned in (op.Cos(angles), op.Sin(angles)))
    return Angles(cos, sin, rows, 0 if size == spec.head_dim else size)


def make_step(op: Op, dialect: Dialect, inputs: DecoderInputs | MtpInputs, spec: DecoderSpec) -> StepTables:
    """Angles and lengths of this step."""
    angles = token_angles(op, dialect, inputs.position_ids, spec)
    if inputs.lengths is not None:
        return StepTables(angles, inputs.past_lengths, *inputs.lengths)
    new = op.Cast(op.Shape(inputs.input_ids, start=1), to=ir.DataType.INT32)
    total = op.Add(inputs.past_lengths, new)
    one = op.Constant(value=ir.tensor(np.array([1], np.int32)))
    return StepTables(angles, inputs.past_lengths, op.Sub(total, one), op.ReduceMax(total, keepdims=0))


class HeadNorm(nn.Module):
    """RMS norm of each head of [batch, seq, heads * head_dim]."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec) -> None:
        super().__init__()
        self.dialect, self.eps, self.head_dim = dialect, spec.norm_eps, spec.head_dim
        self.weight = offset([spec.head_dim], spec.norm_offset)

    def forward(self, op: Op, x: Value, heads: int) -> Value:
        split = op.Reshape(x, [0, 0, heads, self.head_dim])
        return op.Reshape(self.dialect.rms_norm(op, split, self.weight, self.eps), [0, 0, heads * self.head_dim])


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary positions; norms of queries and keys, and a gate of its output on request."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy, cache_scales: Scales | None = None) -> None:
        super().__init__()
        self.dialect, self.spec, self.cache_scales = dialect, spec, cache_scales
        query, kv, bias = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.qkv_bias
        rows = {"q_proj": query * (2 if spec.output_gate else 1), "k_proj": kv, "v_proj": kv}
        schemes = {name: policy.scheme("decoder", spec.hidden, name) for name in rows}
        self.q_proj, self.k_proj, self.v_proj = (
            Linear(dialect, spec.hidden, rows[name], schemes[name], bias=bias) for name in rows
        )
        out = policy.scheme("decoder", query, "o_proj")
        self.o_proj = Linear(dialect, query, spec.hidden, out, bias=spec.output_bias)
        self.q_norm = HeadNorm(dialect, spec) if spec.qk_norm else None
        self.k_norm = HeadNorm(dialect, spec) if spec.qk_norm else None

    def forward(
        self, op: Op, x: Value, step: StepTables, past: tuple[Value, Value]
    ) -> tuple[Value, tuple[Value, Value]]:
        """Attention output before `project` [batch, seq, heads * head_dim], and the present key and value."""
        heads, kv_heads = self.spec.heads, self.spec.kv_heads
        q, gate = self._queries(op, x)
        k = self.k_proj(op, x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(op, q, heads), self.k_norm(op, k, kv_heads)
        q = self.dialect.rotary(op, q, step.angles, heads)
        k = self.dialect.rotary(op, k, step.angles, kv_heads)
        cache = Cache(*past, step.last, step.total, self._scales(op), step.past)
        out, key, value = self.dialect.cached_attention(op, q, k, self.v_proj(op, x), cache, heads, kv_heads)
        return out if gate is None else op.Mul(out, op.Sigmoid(gate)), (key, value)

    def project(self, op: Op, x: Value) -> Value:
        """[batch, seq, heads * head_dim] to [batch, seq, hidden]."""
        return self.o_proj(op, x)

    def _scales(self, op: Op) -> tuple[Value, Value] | None:
        if self.cache_scales is None:
            return None
        key, value = (
            op.initializer(ir.tensor(scales[None, :, None]), name=f"{kind}_cache_scales")
            for kind, scales in zip(("key", "value"), self.cache_scales, strict=True)
        )
        return key, value

    def _queries(self, op: Op, x: Value) -> tuple[Value, Value | None]:
        """Queries and the gate of the output, [batch, seq, heads * head_dim] each; q_proj interleaves them by head."""
        q, heads = self.q_proj(op, x), self.spec.heads
        if not self.spec.output_gate:
            return q, None
        pairs = op.Split(op.Reshape(q, [0, 0, heads, -1]), axis=-1, num_outputs=2, _outputs=2)
        query, gate = (op.Reshape(part, [0, 0, heads * self.spec.head_dim]) for part in pairs)
        return query, gate


class DecoderMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy) -> None:
        super().__init__()
        self.dialect, self.act = dialect, spec.activation
        bias = spec.mlp_bias
        self.gate_proj, self.up_proj = (
            Linear(dialect, spec.hidden, spec.intermediate, policy.scheme("decoder", spec.hidden, name), bias=bias)
            for name in ("gate_proj", "up_proj")
        )
        down = policy.scheme("decoder", spec.intermediate, "down_proj")
        self.down_proj = Linear(dialect, spec.intermediate, spec.hidden, down, bias=bias)

    def forward(self, op: Op, x: Value) -> Value:
        gate = self.dialect.activation(op, self.gate_proj(op, x), self.act)
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class DecoderLayer(nn.Module):
    """One decoder layer. Carries the residual stream and the last addition to it, so that norms can fuse them."""

    def __init__(
        self,
        dialect: Dialect,
        spec: DecoderSpec,
        policy: Policy,
        *,
        linear: bool = False,
        cache_scales: Scales | None = None,
    ) -> None:
        super().__init__()
        self.dialect = dialect
        self.input_layernorm = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)
        self.post_attention_layernorm = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)
        if linear:
            self.linear_attn = DeltaNet(dialect, spec, policy.inside("linear_attn"))
        else:
            self.self_attn = DecoderAttention(dialect, spec, policy.inside("self_attn"), cache_scales)
        self.linear = linear
        self.mlp = DecoderMLP(dialect, spec, policy.inside("mlp"))

    def forward(
        self,
        op: Op,
        stream: Value,
        delta: Value | None,
        step: StepTables,
        past: tuple[Value, Value],
        chosen: Value | None,
    ) -> tuple[Value, Value, tuple[Value, Value]]:
        """Stream, addition to it, present states. Positions that are not chosen are left out behind attention."""
        normed, stream = self.input_layernorm(op, stream, delta)
        mixer: DecoderAttention | DeltaNet = self.linear_attn if self.linear else self.self_attn
        mixed, present = self.linear_attn(op, normed, past) if self.linear else self.self_attn(op, normed, step, past)
        if chosen is not None:
            mixed, stream = (self.dialect.keep(op, x, chosen) for x in (mixed, stream))
        normed, stream = self.post_attention_layernorm(op, stream, mixer.project(op, mixed))
        return stream, self.mlp(op, normed), present


def make_logits(op: Op, dialect: Dialect, hidden: Value, table: Table, head: Linear | None) -> Value:
    """Logits float32 [batch, seq, vocab]; a tied model has no `head`."""
    return dialect.leave(op, dialect.matmul(op, hidden, table.weight, None) if head is None else head(op, hidden))


class DecoderGraph(nn.Module):
    """Token ids and image features to logits of the last positions."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy, image_token_id: int) -> None:
        super().__init__()
        self.dialect, self.spec, self.image_token_id = dialect, spec, image_token_id
        table = policy.scheme("table", spec.hidden, "embed_tokens")
        self.embed_tokens = dialect.table(spec.vocab, spec.hidden, table, shared=spec.tied)
        self.layers = nn.ModuleList([
            DecoderLayer(dialect, spec, policy.inside(f"layers.{index}"), linear=index in spec.linear_layers,
                  cache_scales=policy.kv_cache.of(index, spec))
            for index in range(spec.layers)
        ])  # fmt: skip
        self.norm = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)

    def forward(self, op: Op, inputs: DecoderInputs, head: Linear | None) -> DecoderOutputs:
        """Logits, hidden states and present states. A tied model has no `head`."""
        dialect = self.dialect
        places = dialect.places(op, inputs.input_ids, self.image_token_id)
        embedded = dialect.gather_rows(op, inputs.input_ids, self.embed_tokens)
        stream, delta = dialect.put(op, embedded, places, inputs.image_features), None
        step = make_step(op, dialect, inputs, self.spec)
        kept = inputs.num_logits if inputs.num_hidden_states is None else inputs.num_hidden_states
        chosen = dialect.choose(op, kept, op.Shape(inputs.input_ids, start=1))
        present = []
        for index, layer in enumerate(self.layers):
            cut = chosen if index == self._last_full_layer(inputs) else None
            stream, delta, states = layer(op, stream, delta, step, inputs.past[index], cut)
            if index < inputs.taps:
                feature = op.Gather(inputs.deepstack_features, index, axis=0)
                stream, delta = dialect.add_at(op, op.Add(stream, delta), places, feature), None
            present.append(states)
        hidden = self.norm(op, stream, delta)[0]
        if self._last_full_layer(inputs) is None:
            hidden = dialect.keep(op, hidden, chosen)
        wanted = hidden
        if inputs.num_hidden_states is not None:
            wanted = dialect.keep(op, hidden, dialect.choose(op, inputs.num_logits, inputs.num_hidden_states))
        logits = make_logits(op, dialect, wanted, self.embed_tokens, head)
        return DecoderOutputs(logits, dialect.leave(op, hidden), present)

    def _last_full_layer(self, inputs: DecoderInputs) -> int | None:
        """The layer behind whose attention only the positions with logits matter, unless DeepStack adds to it."""
        last = self.spec.layers - 1
        return last if inputs.taps <= last else None
