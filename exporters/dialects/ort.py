"""The ort dialect: graph descriptions as operators of ONNX Runtime, fused where it has a kernel for it."""

from __future__ import annotations

from dataclasses import dataclass

from ..blocks import Angles, Cache, Matrix, Op, Table, Value

MS = "com.microsoft"
OPSETS = {"": 21, MS: 1}


@dataclass(frozen=True)
class OrtDialect:
    """Operators with CPU and CUDA kernels in ONNX Runtime.

    `accuracy_level` is MatMulNBits' own: 4 lets the kernel round activations to int8 in each group, 1 keeps float32.
    """

    accuracy_level: int = 4

    def matmul(self, op: Op, x: Value, weight: Matrix, bias: Value | None) -> Value:
        """x [..., columns] times the transposed weight, plus bias: [..., rows]."""
        parts = weight(op)
        if not weight.scheme.quantized:
            y = op.FusedMatMul(x, parts["values"], transB=1, _domain=MS)
            return y if bias is None else op.Add(y, bias)
        if weight.scheme.int8_activations:
            columns_first = op.Transpose(parts["values"], perm=[1, 0])  # a constant, folded at load
            return op.DynamicQuantizeMatMul(x, columns_first, parts["scales"], None, bias, _domain=MS)
        return op.MatMulNBits(
            x,
            parts["values"],
            parts["scales"],
            parts.get("zero_points"),
            None,
            bias,
            K=weight.columns,
            N=weight.rows,
            bits=weight.scheme.bits,
            block_size=weight.scheme.group_size,
            accuracy_level=self.accuracy_level,
            _domain=MS,
        )

    def gather_rows(self, op: Op, ids: Value, table: Table) -> Value:
        """Rows of a table by id: [..., columns] in float32."""
        parts, scheme = table(op), table.weight.scheme
        if not scheme.quantized:
            return op.Gather(parts["values"], ids, axis=0)
        return op.GatherBlockQuantized(
            parts["values"],
            ids,
            parts["scales"],
            parts.get("zero_points"),
            bits=scheme.bits,
            block_size=scheme.group_size,
            gather_axis=0,
            quantize_axis=1,
            _domain=MS,
        )

    def rms_norm(self, op: Op, x: Value, weight: Value, eps: float) -> Value:
        return op.SimplifiedLayerNormalization(x, weight, axis=-1, epsilon=eps, stash_type=1)

    def add_rms_norm(self, op: Op, x: Value, skip: Value, weight: Value, eps: float) -> tuple[Value, Value]:
        out = op.SkipSimplifiedLayerNormalization(x, skip, weight, epsilon=eps, _domain=MS, _outputs=4)
        return out[0], out[3]

    def layer_norm(self, op: Op, x: Value, weight: Value, bias: Value, eps: float) -> Value:
        return op.LayerNormalization(x, weight, bias, axis=-1, epsilon=eps)

    def add_layer_norm(
        self, op: Op, x: Value, skip: Value, weight: Value, bias: Value, eps: float
    ) -> tuple[Value, Value]:
        out = op.SkipLayerNormalization(x, skip, weight, bias, epsilon=eps, _domain=MS, _outputs=4)
        return out[0], out[3]

    def activation(self, op: Op, x: Value, kind: str) -> Value:
        return _ACTIVATIONS[kind](op, x)

    def rotary(self, op: Op, x: Value, angles: Angles, heads: int) -> Value:
        """Rotate x [batch, seq, heads * head_dim] by half-split pairs."""
        return op.RotaryEmbedding(
            x, angles.rows, angles.cos, angles.sin, interleaved=0, num_heads=heads, rotary_embedding_dim=0, _domain=MS
        )

    def attention(self, op: Op, q: Value, k: Value, v: Value, heads: int) -> Value:
        """Full attention of [batch, seq, heads * head_dim] within each batch row."""
        return op.MultiHeadAttention(q, k, v, num_heads=heads, _domain=MS)

    def cached_attention(
        self, op: Op, q: Value, k: Value, v: Value, cache: Cache, heads: int, kv_heads: int
    ) -> tuple[Value, Value, Value]:
        """Causal attention over the cache and the new tokens: output, present key, present value.

        Writes into the cache itself when past and present are bound to one buffer.
        """
        out = op.GroupQueryAttention(
            q,
            k,
            v,
            cache.key,
            cache.value,
            cache.last,
            cache.total,
            num_heads=heads,
            kv_num_heads=kv_heads,
            _domain=MS,
            _outputs=3,
        )
        return out[0], out[1], out[2]


_ACTIVATIONS = {
    "silu": lambda op, x: op.QuickGelu(x, alpha=1.0, _domain=MS),
    "gelu": lambda op, x: op.Gelu(x, _domain=MS),
    "gelu_tanh": lambda op, x: op.FastGelu(x, _domain=MS),
}
