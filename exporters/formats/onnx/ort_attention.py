"""Attention in ONNX Runtime's operators: with a bias for each pair of positions, and over a cache."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ...graphs.dialect import Cache
from ...graphs.graph_terms import Op, Value
from ...graphs.kv_cache import HALF_WIDTHS
from .native_operators import DOMAIN

MS = "com.microsoft"
I64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
# Of biased attention in one step: scores (64 MB) and queries. With 24 heads of 64 and 5120 patches, of which a quarter
# is in reach each way, steps of 256 queries take 1.2 s on 2 cores, of 512 1.9 s, and with all keys 2.5 s.
SCORES, QUERIES = 1 << 24, 256


def biased_attention(
    op: Op, qkv: tuple[Value, Value, Value], heads: int, bias: Value, reach: Value | None, kind: ir.DataType
) -> Value:
    """Attention of [1, seq, heads * head_dim] with bias [1, 1, seq, seq] added to the scores of all heads.

    `reach` int64 [1], if given, says how many keys before and behind a query can have a weight at all. The kernel
    keeps the scores of all its queries, so a loop gives it a few at a time: SCORES bounds what it holds, and the
    fewer queries, the fewer keys are within their reach.
    """
    q, k, v = qkv
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
    ports = (("index", I64, []), ("more", BOOL, []), ("done", kind, rows), ("again", BOOL, []), ("rows", kind, rows))
    made = [ir.Value(name=name, type=ir.TensorType(of), shape=ir.Shape(shape)) for name, of, shape in ports]
    body = op.builder.subgraph(some, made[:3], made[3:], name="queries")
    return op.Loop(trips, None, op.Slice(q, [0], [0], [1]), body=body)


def cached_attention(
    op: Op, qkv: tuple[Value, Value, Value], cache: Cache, heads: int, kv_heads: int, wide: ir.DataType
) -> tuple[Value, Value, Value]:
    """Causal attention over the cache and the new tokens: output, present key, present value.

    Writes into the cache itself when past and present are bound to one buffer. With scales, keys and values are
    rounded to int8 as they enter it, and this step reads what was rounded; so it is with float16. Of both, operators of
    lensmith take care where all else is float32.
    """
    sizes = {"num_heads": heads, "kv_num_heads": kv_heads}
    narrow = wide == ir.DataType.FLOAT != cache.key.dtype
    if narrow and cache.scales is None:
        out = op.CachedAttention(*qkv, cache.key, cache.value, cache.past, **sizes, _domain=DOMAIN, _outputs=3)
        return out[0], out[1], out[2]
    if narrow and cache.scales is not None and cache.key.shape[3] in HALF_WIDTHS:
        states = (cache.key, cache.value, cache.past)
        out = op.CachedAttentionInt8(*qkv, *states, *cache.scales, **sizes, _domain=DOMAIN, _outputs=3)
        return out[0], out[1], out[2]
    scales: tuple[Value | None, ...] = ()
    options: dict[str, Any] = {}
    if cache.scales is not None:
        scales = (None, None, None, None, None, *cache.scales)
        options = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    out = op.GroupQueryAttention(
        *qkv,
        cache.key,
        cache.value,
        cache.last,
        cache.total,
        *scales,
        **sizes,
        **options,
        _domain=MS,
        _outputs=3,
    )
    return out[0], out[1], out[2]
