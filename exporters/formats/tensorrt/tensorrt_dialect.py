"""The tensorrt dialect: graph descriptions as standard operators that TensorRT's parser takes, in one float type.

No value decides a shape: what the ort dialect counts inside the graph comes as indices of runtimes/media/places.py.
One conversation at a time: the batch is 1. The same file runs in ONNX Runtime, which proves its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...graphs.dialect import Angles, Cache, Ports
from ...graphs.graph_terms import Op, Value
from ...graphs.matrices import Matrix, Table
from ...storage.scheme import Scheme
from ..indexed_dialect import Indexed
from . import tensorrt_attention, tensorrt_delta
from .tensorrt_weights import QdqMatrix, QdqTable

OPSETS = {"": 24}  # the first with TensorScatter
F32 = ir.DataType.FLOAT


@dataclass(frozen=True)
class TensorRTDialect(Indexed):
    """Operators for TensorRT; `capacity` is the tokens that the KV cache holds."""

    capacity: int
    fused: bool = True  # attention over a cache as one operator; not in graphs with a Scan
    opsets: ClassVar[dict[str, int]] = OPSETS

    @property
    def ports(self) -> Ports:
        return Ports(batch=1, capacity=self.capacity, states=self.dtype, indexed=True)

    def matrix(self, rows: int, columns: int, scheme: Scheme) -> Matrix:
        return QdqMatrix(rows, columns, scheme, self.dtype)

    def table(self, rows: int, columns: int, scheme: Scheme, *, shared: bool) -> Table:
        return QdqTable(QdqMatrix(rows, columns, scheme, self.dtype))

    def matmul(self, op: Op, x: Value, weight: Matrix, bias: Value | None) -> Value:
        """x [..., columns] times the transposed weight, plus bias: [..., rows]; float32 for weights stored so.

        As Gemm, which takes the weight as it lies: behind a Transpose, TensorRT writes out the floats of some packed
        weights at each step, in graphs with a Scan.
        """
        wide = weight.scheme.bits == 32
        enter = self.leave if wide else self.enter
        shape = op.Concat(op.Shape(x, start=0, end=-1), [weight.rows], axis=0)
        rows = op.Reshape(self.leave(op, x) if wide else x, [-1, weight.columns])
        parts, bias = weight(op), None if bias is None else enter(op, bias)
        if "factors" not in parts:
            return op.Reshape(op.Gemm(rows, parts["values"], bias, transB=1), shape, allowzero=1)
        y = op.Mul(op.Gemm(rows, parts["values"], None, transB=1), parts["factors"])
        return op.Reshape(y if bias is None else op.Add(y, bias), shape, allowzero=1)

    def gather_rows(self, op: Op, ids: Value, table: Table) -> Value:
        """Rows of a table by ids [batch, seq]: [batch, seq, columns].

        Those of 8 bits are columns of the transposed table: TensorRT stores that for the output head, and would store
        both. Beside a Scan both it is, as TensorRT then writes out the floats of a table behind a Transpose.
        """
        parts = table(op)
        if "factors" not in parts:
            return op.Gather(parts["values"], ids, axis=0)
        factors = op.Unsqueeze(op.Gather(parts["factors"], ids, axis=0), [-1])
        if not self.fused:
            return op.Mul(op.Gather(parts["values"], ids, axis=0), factors)
        columns = op.Gather(op.Transpose(parts["values"], perm=[1, 0]), ids, axis=1)
        return op.Mul(op.Transpose(columns, perm=[1, 2, 0]), factors)

    def rms_norm(self, op: Op, x: Value, weight: Value, eps: float) -> Value:
        return op.RMSNormalization(x, self.enter(op, weight), axis=-1, epsilon=eps)

    def add_rms_norm(self, op: Op, x: Value, skip: Value, weight: Value, eps: float) -> tuple[Value, Value]:
        total = op.Add(x, skip)
        return self.rms_norm(op, total, weight, eps), total

    def layer_norm(self, op: Op, x: Value, weight: Value, bias: Value, eps: float) -> Value:
        return op.LayerNormalization(x, self.enter(op, weight), self.enter(op, bias), axis=-1, epsilon=eps)

    def add_layer_norm(
        self, op: Op, x: Value, skip: Value, weight: Value, bias: Value, eps: float
    ) -> tuple[Value, Value]:
        total = op.Add(x, skip)
        return self.layer_norm(op, total, weight, bias, eps), total

    def activation(self, op: Op, x: Value, kind: str) -> Value:
        return _ACTIVATIONS[kind](op, x)

    def rotary(self, op: Op, x: Value, angles: Angles, heads: int) -> Value:
        """Rotate x [1, seq, heads * head_dim] by half-split pairs."""
        cos, sin = (op.Unsqueeze(table, [0]) for table in (angles.cos, angles.sin))
        return op.RotaryEmbedding(x, cos, sin, interleaved=0, num_heads=heads, rotary_embedding_dim=angles.size)

    def attention(self, op: Op, q: Value, k: Value, v: Value, heads: int, *, rounded: bool = False) -> Value:
        """Full attention of [batch, seq, heads * head_dim] within each batch row."""
        return op.Attention(q, k, v, q_num_heads=heads, kv_num_heads=heads)

    def biased_attention(
        self, op: Op, q: Value, k: Value, v: Value, heads: int, bias: Value, reach: Value | None
    ) -> Value:
        """Attention of [1, seq, heads * head_dim] with bias [1, 1, seq, seq] added to the scores of all heads."""
        return op.Attention(q, k, v, bias, q_num_heads=heads, kv_num_heads=heads)

    def masked_attention(self, op: Op, q: Value, k: Value, v: Value, heads: int, bias: Value) -> Value:
        """Attention within short rows [batch, seq, heads * head_dim] with bias [batch, 1, seq, seq] for all heads."""
        return op.Attention(q, k, v, bias, q_num_heads=heads, kv_num_heads=heads)

    def cached_attention(
        self, op: Op, q: Value, k: Value, v: Value, cache: Cache, heads: int, kv_heads: int
    ) -> tuple[Value, Value, Value]:
        """Causal attention over the cache and the new tokens: output, present key, present value."""
        scale = self.enter(op, op.Constant(value_float=float(cache.key.shape[3]) ** -0.5))
        return tensorrt_attention.cached_attention(
            op, op.Mul(q, scale), k, v, cache, (heads, kv_heads), fused=self.fused
        )

    def l2_norm(self, op: Op, x: Value, size: int, eps: float) -> Value:
        """x / sqrt(sum(x^2) + eps) over the last axis, in float32: an RMS norm with a constant weight."""
        weight = op.Constant(value=ir.tensor(np.full(size, size**-0.5, np.float32)))
        return op.RMSNormalization(self.leave(op, x), weight, axis=-1, epsilon=eps / size)

    def gated_rms_norm(self, op: Op, x: Value, gate: Value, weight: Value, heads: int, eps: float) -> Value:
        """RMS norm of each head of x [batch, seq, heads * head_dim], times silu(gate)."""
        normed = self.rms_norm(op, op.Reshape(x, [0, 0, heads, -1]), weight, eps)
        return op.Mul(op.Reshape(normed, [0, 0, -1]), self.activation(op, gate, "silu"))

    def causal_conv(self, op: Op, x: Value, weight: Value, state: Value, act: str) -> tuple[Value, Value]:
        """Depthwise convolution of x [1, seq, channels] over its past: act of it, and the present state."""
        y, present = tensorrt_delta.causal_conv(op, x, self.enter(op, weight), state, int(weight.shape[2]))
        return self.activation(op, y, act), present

    def delta_gates(self, op: Op, a: Value, b: Value, bias: Value, scale: Value) -> tuple[Value, Value]:
        """Log of the decay, scale * softplus(a + bias), and update rate sigmoid(b) [1, seq, heads], in float32."""
        return op.Mul(op.Softplus(op.Add(a, bias)), scale), op.Sigmoid(b)

    def delta_rule(
        self, op: Op, qkv: tuple[Value, Value, Value], gates: tuple[Value, Value], state: Value, heads: tuple[int, int]
    ) -> tuple[Value, Value]:
        """The gated delta rule over normalized queries and keys, heads for keys and for values: output, present."""
        q, k, v = qkv
        out, present = tensorrt_delta.delta_rule(op, (q, k, self.leave(op, v)), gates, state, heads)
        return self.enter(op, out), present


_ACTIVATIONS = {
    "silu": lambda op, x: op.Swish(x),
    "quick_gelu": lambda op, x: op.Swish(x, alpha=1.702),
    "gelu": lambda op, x: op.Gelu(x),
    "gelu_tanh": lambda op, x: op.Gelu(x, approximate="tanh"),
}
