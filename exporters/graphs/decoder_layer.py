"""One layer of a decoder: attention or a delta net, and a gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import nn

from ..spec import DecoderSpec
from ..storage.scheme import Policy
from .blocks import Linear, RMSNorm
from .delta_net import DeltaNet
from .dialect import Angles, Cache, Dialect
from .graph_terms import Op, Value
from .kv_cache import Scales
from .matrices import offset


@dataclass(frozen=True)
class StepTables:
    """What all attention layers share: rotary angles, and lengths behind this step."""

    angles: Angles
    past: Value  # int32 [batch], the length before it
    last: Value  # int32 [batch], index of the last position
    total: Value  # int32 scalar, the longest length


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


class Layer(nn.Module):
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
