"""Graph description of Qwen3.5's linear attention: a gated delta net behind a causal convolution."""

from __future__ import annotations

import numpy as np
from onnxscript import nn

from ..spec import DecoderSpec, DeltaNetSpec
from ..storage.scheme import GATES, Policy
from .blocks import Linear
from .dialect import Dialect
from .graph_terms import Op, Value
from .matrices import Derived

L2_EPS = 1e-6  # of normalized queries and keys, a constant of the architecture


class Conv(nn.Module):
    """The taps of a depthwise convolution, as the checkpoint has them."""

    def __init__(self, net: DeltaNetSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter([net.mixed, 1, net.kernel])

    def forward(self, op: Op) -> Value:
        return self.weight


class GatedNorm(nn.Module):
    """RMS norm of each value head, times silu of a gate; its weights are not stored around zero."""

    def __init__(self, dialect: Dialect, net: DeltaNetSpec, eps: float) -> None:
        super().__init__()
        self.dialect, self.heads, self.eps = dialect, net.value_heads, eps
        self.weight = nn.Parameter([net.value_dim])

    def forward(self, op: Op, x: Value, gate: Value) -> Value:
        return self.dialect.gated_rms_norm(op, x, gate, self.weight, self.heads, self.eps)


class DeltaNet(nn.Module):
    """Qwen3.5's `linear_attn`, as transformers' `Qwen3_5GatedDeltaNet`."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy) -> None:
        super().__init__()
        assert spec.delta_net is not None
        self.dialect, self.act, self.net = dialect, spec.activation, spec.delta_net
        net, hidden = spec.delta_net, spec.hidden
        self.in_proj_qkv, self.in_proj_z = (
            Linear(dialect, hidden, rows, policy.scheme("linear_attention", hidden, name), bias=False)
            for name, rows in (("in_proj_qkv", net.mixed), ("in_proj_z", net.values))
        )
        self.in_proj_b = Linear(dialect, hidden, net.value_heads, GATES, bias=False)
        self.in_proj_a = Linear(dialect, hidden, net.value_heads, GATES, bias=False)
        self.conv1d = Conv(net)
        self.dt_bias = nn.Parameter([net.value_heads])
        self.A_log = Derived([net.value_heads], lambda rows: -np.exp(rows))
        self.norm = GatedNorm(dialect, net, spec.norm_eps)
        out = policy.scheme("linear_attention", net.values, "out_proj")
        self.out_proj = Linear(dialect, net.values, hidden, out, bias=False)

    def forward(self, op: Op, x: Value, past: tuple[Value, Value]) -> tuple[Value, tuple[Value, Value]]:
        """x [batch, seq, hidden] to the output before `project` [batch, seq, values], and the present states.

        States: the last inputs of the convolution [batch, mixed, kernel - 1] and the memory of the delta rule
        [batch, value_heads, key_dim, value_dim].
        """
        mixed = self.in_proj_qkv(op, x)
        mixed, conv = self.dialect.causal_conv(op, mixed, self.conv1d(op), past[0], self.act)
        a, b = self.in_proj_a(op, x), self.in_proj_b(op, x)
        gates = self.dialect.delta_gates(op, a, b, self.dt_bias, self.A_log)
        heads = (self.net.key_heads, self.net.value_heads)
        out, recurrent = self.dialect.delta_rule(op, self._split(op, mixed), gates, past[1], heads)
        return self.norm(op, out, self.in_proj_z(op, x)), (conv, recurrent)

    def project(self, op: Op, x: Value) -> Value:
        """[batch, seq, values] to [batch, seq, hidden]."""
        return self.out_proj(op, x)

    def _split(self, op: Op, mixed: Value) -> tuple[Value, Value, Value]:
        """Queries and keys, each head normalized to length 1, and values."""
        net = self.net
        pair, v = op.Split(mixed, [2 * net.keys, net.values], axis=-1, _outputs=2)
        heads = op.Reshape(pair, [0, 0, 2 * net.key_heads, net.key_dim])
        pair = op.Reshape(self.dialect.l2_norm(op, heads, net.key_dim, L2_EPS), [0, 0, 2 * net.keys])
        q, k = op.Split(pair, axis=-1, num_outputs=2, _outputs=2)
        return q, k, v
