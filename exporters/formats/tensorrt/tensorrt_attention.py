"""TensorRT's own attention operator, and its meaning in ONNX's, so that one file runs in both engines.

TensorRT's parser takes the node for its fused attention and ignores the function; ONNX Runtime puts the function's body
in its place. ONNX's own Attention will not do for a cache: TensorRT anchors its causal mask at the first key, refuses
past keys, and drops their number (`nonpad_kv_seqlen`) without a word.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graphs.dialect import Cache
from ...graphs.graph_terms import Op, Value

DOMAIN, VERSION = "trt", 1
F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64
HIDDEN = -1e9  # added to a score: its exponential is exactly 0

# Query i of S sees the keys up to kv_lengths - S + i; keys behind that may hold anything finite.
FUNCTIONS = {
    "TRT_Attention": """
        <opset_import: ["" : 24], domain: "trt">
        TRT_Attention <causal_kind, TRT_decomposable> (query, key, value, mask, new_lengths, key_lengths) => (output) {
            zero = Constant <value_int: int = 0> ()
            one = Constant <value_int: int = 1> ()
            ones = Constant <value_ints: ints = [1]> ()
            new = Shape <start: int = 2, end: int = 3> (query)
            capacity = Shape <start: int = 2, end: int = 3> (key)
            rows_end = Squeeze (new)
            columns_end = Squeeze (capacity)
            rows = Range (zero, rows_end, one)
            columns = Range (zero, columns_end, one)
            lengths = Cast <to: int = 7> (key_lengths)
            before = Sub (lengths, new)
            first = Unsqueeze (before, ones)
            last = Add (first, rows)
            axes = Constant <value_ints: ints = [1, 3]> ()
            reach = Unsqueeze (last, axes)
            visible = LessOrEqual (columns, reach)
            output = Attention <scale: float = 1.0> (query, key, value, visible)
        }
    """,
}


def cached_attention(
    op: Op, q: Value, k: Value, v: Value, cache: Cache, heads: tuple[int, int], *, fused: bool
) -> tuple[Value, Value, Value]:
    """See `Dialect.cached_attention`; `heads` of queries, which are scaled already, and of keys.

    The cache has a fixed capacity, and new keys are written into it where it lies. TensorRT-RTX 1.7 ends its process
    on graphs with a Scan and more than one TRT_Attention: those need another than the `fused` one.
    """
    split_k, split_v = (_by_head(op, x, heads[1]) for x in (k, v))
    begin = op.Cast(cache.past, to=I64)
    key = op.TensorScatter(cache.key, split_k, begin, axis=2)
    value = op.TensorScatter(cache.value, split_v, begin, axis=2)
    attend = _fused if fused else _spelled_out
    y = attend(op, _by_head(op, q, heads[0]), key, value, cache)
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]), key, value


def _fused(op: Op, q: Value, key: Value, value: Value, cache: Cache) -> Value:
    """As TensorRT's operator.

    TRT_decomposable lets TensorRT build what has no fused kernel, such as capacities over 16384, and changes nothing
    where there is one.
    """
    one = op.Constant(value=ir.tensor(np.array([1], np.int32)))
    return op.TRT_Attention(
        q,
        key,
        value,
        None,
        None,
        op.Add(cache.last, one),
        causal_kind="lower_right",
        TRT_decomposable=1,
        _domain=DOMAIN,
    )


def _spelled_out(op: Op, q: Value, key: Value, value: Value, cache: Cache) -> Value:
    """As products and a softmax in float32: q [1, heads, seq, head_dim], keys [1, kv_heads, capacity, head_dim]."""
    _, kv_heads, capacity, size = cache.key.shape
    kind = cache.key.dtype
    grouped = op.Reshape(q, [1, kv_heads, -1, size])  # the queries of the heads that share a key, one after the other
    scores = op.Cast(op.MatMul(grouped, op.Transpose(key, perm=[0, 1, 3, 2])), to=F32)
    by_head = op.Reshape(scores, op.Concat(op.Shape(q, start=0, end=3), [capacity], axis=0))
    # 0 for keys up to the position of each query, and HIDDEN for those behind: float32 [seq, capacity].
    new = op.Squeeze(op.Shape(q, start=2, end=3), [0])
    places = op.Unsqueeze(op.Add(op.Cast(cache.past, to=I64), op.Range(0, new, 1)), [1])
    columns = op.Constant(value=ir.tensor(np.arange(capacity, dtype=np.int64)))
    seen = op.Cast(op.LessOrEqual(columns, places), to=F32)
    mask = op.Mul(op.Sub(seen, [1.0]), [-HIDDEN])
    weights = op.Cast(op.Softmax(op.Add(by_head, mask), axis=-1), to=kind)
    mixed = op.MatMul(op.Reshape(weights, [1, kv_heads, -1, capacity]), value)
    return op.Reshape(mixed, op.Shape(q))


def _by_head(op: Op, x: Value, heads: int) -> Value:
    """[batch, seq, heads * head_dim] as [batch, heads, seq, head_dim]."""
    return op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])
