"""TensorRT's own attention operator, and its meaning in ONNX's, so that one file runs in both engines.

TensorRT's parser takes the node for its fused attention and ignores the function; ONNX Runtime puts the function's body
in its place. ONNX's own Attention will not do for a cache: TensorRT anchors its causal mask at the first key, refuses
past keys, and drops their number (`nonpad_kv_seqlen`) without a word.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..blocks import Cache, Op, Value

DOMAIN, VERSION = "trt", 1

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
    op: Op, q: Value, k: Value, v: Value, cache: Cache, heads: tuple[int, int]
) -> tuple[Value, Value, Value]:
    """See `Dialect.cached_attention`; `heads` of queries and of keys.

    The cache has a fixed capacity, and new keys are written into it where it lies. TRT_Attention does not scale.
    TRT_decomposable lets TensorRT build what has no fused kernel, such as capacities over 16384, and changes nothing
    where there is one.
    """
    split_k, split_v = (_by_head(op, x, heads[1]) for x in (k, v))
    begin = op.Cast(cache.past, to=ir.DataType.INT64)
    key = op.TensorScatter(cache.key, split_k, begin, axis=2)
    value = op.TensorScatter(cache.value, split_v, begin, axis=2)
    one = op.Constant(value=ir.tensor(np.array([1], np.int32)))
    y = op.TRT_Attention(
        _by_head(op, q, heads[0]),
        key,
        value,
        None,
        None,
        op.Add(cache.last, one),
        causal_kind="lower_right",
        TRT_decomposable=1,
        _domain=DOMAIN,
    )
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]), key, value


def _by_head(op: Op, x: Value, heads: int) -> Value:
    """[batch, seq, heads * head_dim] as [batch, heads, seq, head_dim]."""
    return op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])
