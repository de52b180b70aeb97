"""The ort dialect: graph descriptions as operators of ONNX Runtime, fused where it has a kernel for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...graphs.dialect import Angles, Cache, Ports
from ...graphs.graph_terms import Op, Value
from ...graphs.matrices import Matrix, Table
from ...storage.scheme import Scheme
from .native_operators import DOMAIN
from .ort_attention import MS, biased_attention, cached_attention
from .product_functions import BLOCK_SIZES

OPSETS = {"": 21, MS: 1}


@dataclass(frozen=True)
class OrtDialect:
    """Operators with CPU and CUDA kernels in ONNX Runtime.

    `accuracy_level` is MatMulNBits' own: 4 lets the kernel round activations to int8 in each group, 1 keeps float32.
    Activations are float32; CudaDialect has others.
    """

    accuracy_level: int = 4
    opsets: ClassVar[dict[str, int]] = OPSETS

    @property
    def ports(self) -> Ports:
        return Ports()

    def matrix(self, rows: int, columns: int, scheme: Scheme) -> Matrix:
        return Matrix(rows, columns, scheme)

    def table(self, rows: int, columns: int, scheme: Scheme, *, shared: bool) -> Table:
        return Table(rows, columns, scheme, shared=shared)

    def enter(self, op: Op, x: Value) -> Value:
        """float32 as the type of activations: itself."""
        return x

    def leave(self, op: Op, x: Value) -> Value:
        """Activations as float32: itself."""
        return x

    def places(self, op: Op, input_ids: Value, token: int) -> Value:
        """Batch row and position of each `token` of input_ids [batch, seq], int64 [found, 2]."""
        return op.Transpose(op.NonZero(op.Equal(input_ids, [token])), perm=[1, 0])

    def put(self, op: Op, x: Value, places: Value, rows: Value) -> Value:
        """x [batch, seq, columns] with rows [found, columns] in its places."""
        return op.ScatterND(x, places, rows)

    def add_at(self, op: Op, x: Value, places: Value, rows: Value) -> Value:
        """x [batch, seq, columns] with rows [found, columns] added in its places."""
        return op.ScatterND(x, places, rows, reduction="add")

    def choose(self, op: Op, wanted: Value, count: Value) -> Value:
        """The first of the last `wanted` of `count` positions, int64 [1] each, for `keep`."""
        return op.Sub(count, wanted)

    def keep(self, op: Op, x: Value, chosen: Value) -> Value:
        """The chosen positions of x [batch, seq, ...]."""
        return op.Slice(x, chosen, [2**62], [1])

    def matmul(self, op: Op, x: Value, weight: Matrix, bias: Value | None) -> Value:
        """x [..., columns] times the transposed weight, plus bias: [..., rows]."""
        if self._is_native(weight):
            return self._matmul_int(op, x, weight, bias)
        scheme = weight.scheme
        if not scheme.quantized:
            y = op.FusedMatMul(x, weight(op)["values"], transB=1, _domain=MS)
            return y if bias is None else op.Add(y, bias)
        if scheme.int8_activations and self.accuracy_level == 4:
            parts = weight(op, widen=False)
            return op.MatMulInt8Rows(x, parts["values"], parts["scales"], bias, _domain=DOMAIN)
        if scheme.int8_activations:
            parts = weight(op)
            columns_first = op.Transpose(parts["values"], perm=[1, 0])  # a constant, folded at load
            return op.DynamicQuantizeMatMul(x, columns_first, parts["scales"], None, bias, _domain=MS)
        parts = _by_block(op, weight, weight(op))
        values, bits = parts["values"], scheme.bits
        if bits < 4:  # the kernel has no 3 bits, and 2 bits at the pace of 4 only with activations rounded to int8
            unpacked = getattr(op, f"UnpackInt{bits}")(values, _domain=DOMAIN)
            values, bits = op.Reshape(unpacked, [weight.rows, -1, scheme.block_size // 2]), 4
        return op.MatMulNBits(
            x,
            values,
            parts["scales"],
            parts.get("zero_points"),
            None,
            bias,
            K=weight.columns,
            N=weight.rows,
            bits=bits,
            block_size=scheme.block_size,
            accuracy_level=self.accuracy_level,
            _domain=MS,
        )

    def _is_native(self, weight: Matrix) -> bool:
        """Whether lensmith's kernel means the same as MatMulNBits would: activations rounded to int8 in each block."""
        scheme = weight.scheme
        if scheme.bits == 8 and (scheme.int8_activations or scheme.float8 or not scheme.many_rows):
            return False
        sizes = BLOCK_SIZES.get(scheme.bits, ())
        return self.accuracy_level == 4 and bool(sizes) and scheme.block_size in sizes

    def _matmul_int(self, op: Op, x: Value, weight: Matrix, bias: Value | None) -> Value:
        scheme = weight.scheme
        parts = _by_block(op, weight, weight(op, widen=False))
        return getattr(op, f"MatMulInt{scheme.bits}")(
            x,
            parts["values"],
            parts["scales"],
            parts.get("zero_points"),
            bias,
            K=weight.columns,
            N=weight.rows,
            block_size=scheme.block_size,
            _domain=DOMAIN,
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
            block_size=1 << (scheme.group_size - 1).bit_length(),  # a whole row is the beginning of one block
            gather_axis=0,
            quantize_axis=1,
            _domain=MS,
        )

    def rms_norm(self, op: Op, x: Value, weight: Value, eps: float) -> Value:
        return op.SimplifiedLayerNormalization(x, self.enter(op, weight), axis=-1, epsilon=eps, stash_type=1)

    def add_rms_norm(self, op: Op, x: Value, skip: Value, weight: Value, eps: float) -> tuple[Value, Value]:
        weight = self.enter(op, weight)
        out = op.SkipSimplifiedLayerNormalization(x, skip, weight, epsilon=eps, _domain=MS, _outputs=4)
        return out[0], out[3]

    def layer_norm(self, op: Op, x: Value, weight: Value, bias: Value, eps: float) -> Value:
        return op.LayerNormalization(x, self.enter(op, weight), self.enter(op, bias), axis=-1, epsilon=eps)

    def add_layer_norm(
        self, op: Op, x: Value, skip: Value, weight: Value, bias: Value, eps: float
    ) -> tuple[Value, Value]:
        weight, bias = self.enter(op, weight), self.enter(op, bias)
        out = op.SkipLayerNormalization(x, skip, weight, bias, epsilon=eps, _domain=MS, _outputs=4)
        return out[0], out[3]

    def activation(self, op: Op, x: Value, kind: str) -> Value:
        return _ACTIVATIONS[kind](op, x)

    def rotary(self, op: Op, x: Value, angles: Angles, heads: int) -> Value:
        """Rotate x [batch, seq, heads * head_dim] by half-split pairs."""
        return op.RotaryEmbedding(
            x,
            angles.rows,
            angles.cos,
            angles.sin,
            interleaved=0,
            num_heads=heads,
            rotary_embedding_dim=angles.size,
            _domain=MS,
        )

    def attention(self, op: Op, q: Value, k: Value, v: Value, heads: int, *, rounded: bool = False) -> Value:
        """Full attention of [batch, seq, heads * head_dim] within each batch row.

        `rounded` allows bfloat16 inside, which is far below the rounding of quantized weights and of int8 activations;
        where the accuracy level keeps activations in float32, attention is exact as well.
        """
        if rounded and self.accuracy_level == 4:
            return op.AttentionBf16(q, k, v, num_heads=heads, _domain=DOMAIN)
        return op.MultiHeadAttention(q, k, v, num_heads=heads, _domain=MS)

    def biased_attention(
        self, op: Op, q: Value, k: Value, v: Value, heads: int, bias: Value, reach: Value | None
    ) -> Value:
        return biased_attention(op, (q, k, v), heads, bias, reach, self.ports.states)

    def masked_attention(self, op: Op, q: Value, k: Value, v: Value, heads: int, bias: Value) -> Value:
        """Attention within short rows [batch, seq, heads * head_dim] with bias [batch, 1, seq, seq] for all heads."""
        return op.MultiHeadAttention(q, k, v, None, None, bias, num_heads=heads, _domain=MS)

    def cached_attention(
        self, op: Op, q: Value, k: Value, v: Value, cache: Cache, heads: int, kv_heads: int
    ) -> tuple[Value, Value, Value]:
        return cached_attention(op, (q, k, v), cache, heads, kv_heads, self.ports.states)

    def l2_norm(self, op: Op, x: Value, size: int, eps: float) -> Value:
        """x / sqrt(sum(x^2) + eps) over the last axis, in float32: an RMS norm with a constant weight."""
        weight = op.Constant(value=ir.tensor(np.full(size, size**-0.5, np.float32)))
        return op.SimplifiedLayerNormalization(self.leave(op, x), weight, axis=-1, epsilon=eps / size, stash_type=1)

    def gated_rms_norm(self, op: Op, x: Value, gate: Value, weight: Value, heads: int, eps: float) -> Value:
        """RMS norm of each head of x [batch, seq, heads * head_dim], times silu(gate).

        GatedRMSNorm does it at once, but on the CPU takes 57 ms for 512 tokens where these take 1, and six times as
        long for one token.
        """
        normed = self.rms_norm(op, op.Reshape(x, [0, 0, heads, -1]), weight, eps)
        return op.Mul(op.Reshape(normed, [0, 0, -1]), self.activation(op, gate, "silu"))

    def causal_conv(self, op: Op, x: Value, weight: Value, state: Value, act: str) -> tuple[Value, Value]:
        """Depthwise convolution of x [batch, seq, channels] over its past: act of it, and the present state.

        States are the last inputs [batch, channels, taps - 1]; past and present may be one buffer. The layout with
        channels last, which needs no transposes, and the fused activation are each slower in long prompts.
        """
        channels_first = op.Transpose(x, perm=[0, 2, 1])
        taps = self.enter(op, weight)
        y, present = op.CausalConvWithState(channels_first, taps, None, state, _domain=MS, _outputs=2)
        return self.activation(op, op.Transpose(y, perm=[0, 2, 1]), act), present

    def delta_gates(self, op: Op, a: Value, b: Value, bias: Value, scale: Value) -> tuple[Value, Value]:
        """Log of the decay, scale * softplus(a + bias), and update rate sigmoid(b) [batch, seq, heads], in float32."""
        decay, beta = op.LinearAttentionGate(a, bias, scale, b, _domain=MS, _outputs=2)
        return decay, beta

    def delta_rule(
        self, op: Op, qkv: tuple[Value, Value, Value], gates: tuple[Value, Value], state: Value, heads: tuple[int, int]
    ) -> tuple[Value, Value]:
        """The gated delta rule over normalized queries and keys, heads for keys and for values: output, present state.

        States are [batch, value_heads, key_dim, value_dim]; past and present may be one buffer.
        """
        q, k, v = qkv
        out, present = op.LinearAttention(
            q,
            k,
            self.leave(op, v),
            state,
            *gates,
            q_num_heads=heads[0],
            kv_num_heads=heads[1],
            update_rule="gated_delta",
            _domain=MS,
            _outputs=2,
        )
        return self.enter(op, out), present


def _by_block(op: Op, weight: Matrix, parts: dict[str, Value]) -> dict[str, Value]:
    """Parts with a scale, and a zero point, for each block: one that stands for a whole row is repeated at load."""
    blocks = weight.columns // weight.scheme.block_size
    if weight.groups > 1 or blocks == 1:
        return parts
    repeated = {"scales": blocks, "zero_points": -(-blocks * max(weight.scheme.bits, 4) // 8)}
    return {
        key: op.Expand(value, [weight.rows, repeated[key]]) if key in repeated else value
        for key, value in parts.items()
    }


_ACTIVATIONS = {
    "silu": lambda op, x: op.QuickGelu(x, alpha=1.0, _domain=MS),
    "quick_gelu": lambda op, x: op.QuickGelu(x, alpha=1.702, _domain=MS),
    "gelu": lambda op, x: op.Gelu(x, _domain=MS),
    "gelu_tanh": lambda op, x: op.FastGelu(x, _domain=MS),
}
