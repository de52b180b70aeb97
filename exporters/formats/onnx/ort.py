"""The ort dialect: graph descriptions as operators of ONNX Runtime, fused where it has a kernel for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...graphs.dialect import Angles, Cache, Ports
from ...graphs.graph_values import Op, Value
from ...graphs.matrices import Matrix, Table
from ...storage.scheme import Scheme
from .native_operators import BLOCK_SIZES, DOMAIN, NATIVE_BITS

MS = "com.microsoft"
OPSETS = {"": 21, MS: 1}
F32, I64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
# Of biased attention in one step: scores (64 MB) and queries. With 24 heads of 64 and 5120 patches, of which a quarter
# is in reach each way, steps of 256 queries take 1.2 s on 2 cores, of 512 1.9 s, and with all keys 2.5 s.
SCORES, QUERIES = 1 << 24, 256


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
        return scheme.bits in NATIVE_BITS and scheme.block_size in BLOCK_SIZES and self.accuracy_level == 4

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
        """Attention of [1, seq, heads * head_dim] with bias [1, 1, seq, seq] added to the scores of all heads.

        `reach` int64 [1], if given, says how many keys before and behind a query can have a weight at all. The kernel
        keeps the scores of all its queries, so a loop gives it a few at a time: SCORES bounds what it holds, and the
        fewer queries, the fewer keys are within their reach.
        """
        seq = op.Shape(q, start=1, end=2)
        step = op.Min(op.Max(op.Div([SCORES // heads], seq), [1]), [QUERIES])
        trips = op.Squeeze(op.Div(op.Add(seq, op.Sub(step, [1])), step), [0])

        def some(op: Op, index: Value, more: Value, done: Value) -> tuple[Value, Value]:
            op.builder.push_module("queries", "")  # values of a loop must not have the names of those around it
            start = op.Mul(index, step)
            end, low = op.Add(start, step), op.Max(op.Sub(start, reach), [0]) if reach is not None else [0]
            high = op.Add(end, reach) if reach is not None else seq
            keys, values = (op.Slice(x, low, high, [1]) for x in (k, v))
            part = op.Slice(bias, op.Concat(start, low, axis=0), op.Concat(end, high, axis=0), [2, 3])
            y = op.MultiHeadAttention(
                op.Slice(q, start, end, [1]), keys, values, None, None, part, num_heads=heads, _domain=MS
            )
            return op.Identity(more), op.Concat(done, y, axis=1)

        width = q.shape[2] if q.shape is not None else None
        rows: list[Any] = [1, None, width]
        ports: tuple[tuple[str, ir.DataType, list[Any]], ...]
        own = self.ports.states
        ports = (("index", I64, []), ("more", BOOL, []), ("done", own, rows), ("again", BOOL, []), ("rows", own, rows))
        made = [ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape)) for name, kind, shape in ports]
        body = op.builder.subgraph(some, made[:3], made[3:], name="queries")
        return op.Loop(trips, None, op.Slice(q, [0], [0], [1]), body=body)

    def masked_attention(self, op: Op, q: Value, k: Value, v: Value, heads: int, bias: Value) -> Value:
        """Attention within short rows [batch, seq, heads * head_dim] with bias [batch, 1, seq, seq] for all heads."""
        return op.MultiHeadAttention(q, k, v, None, None, bias, num_heads=heads, _domain=MS)

    def cached_attention(
        self, op: Op, q: Value, k: Value, v: Value, cache: Cache, heads: int, kv_heads: int
    ) -> tuple[Value, Value, Value]:
        """Causal attention over the cache and the new tokens: output, present key, present value.

        Writes into the cache itself when past and present are bound to one buffer. With scales, keys and values are
        rounded to int8 as they enter it, and this step reads what was rounded.
        """
        scales: tuple[Value | None, ...] = ()
        options: dict[str, Any] = {}
        if cache.scales is not None:
            scales = (None, None, None, None, None, *cache.scales)
            options = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        out = op.GroupQueryAttention(
            q,
            k,
            v,
            cache.key,
            cache.value,
            cache.last,
            cache.total,
            *scales,
            num_heads=heads,
            kv_num_heads=kv_heads,
            **options,
            _domain=MS,
            _outputs=3,
        )
        return out[0], out[1], out[2]

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
