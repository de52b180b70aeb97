"""The gated delta rule and its convolution in plain operators: chunks of tokens at once, and a scan over the chunks.

One graph serves a long prompt and a single token: a chunk is as long as the prompt, at most CHUNK. All in float32, as
the memory of the rule carries errors to the last token. Sizes in shapes: n chunks of C tokens, H value heads, of which
each has K values of a key and V of a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graphs.graph_terms import Op, Value

CHUNK = 64  # tokens; a power of two
F32 = ir.DataType.FLOAT
NEVER = -1e9  # the log of a decay to nothing: its exponential is exactly 0
END = 2**62  # behind every axis


def causal_conv(op: Op, x: Value, weight: Value, state: Value, taps: int) -> tuple[Value, Value]:
    """Depthwise convolution of x [1, seq, channels] over its past, and the last inputs [1, channels, taps - 1].

    As a sum of shifted products, which TensorRT fuses into one kernel.
    """
    past = op.Concat(op.Transpose(state, perm=[0, 2, 1]), x, axis=1)
    columns = op.Split(op.Squeeze(weight, [1]), axis=1, num_outputs=taps, _outputs=taps)
    total = None
    for tap, column in enumerate(columns):
        shifted = op.Slice(past, [tap], [tap - taps + 1 or END], [1])
        part = op.Mul(shifted, op.Squeeze(column, [1]))
        total = part if total is None else op.Add(total, part)
    return total, op.Transpose(op.Slice(past, [1 - taps], [END], [1]), perm=[0, 2, 1])


@dataclass(frozen=True)
class Chunks:
    """What the scan needs of each chunk; `within` are the weights of its own values, [n, H, C, C]."""

    queries: Value  # [n, H, C, K], decayed from the beginning of the chunk
    keys: Value  # [n, H, C, K], decayed to its end
    reads: Value  # [n, H, C, K], what each update takes from the memory in front of the chunk
    updates: Value  # [n, H, C, V], what each token writes if that memory is empty
    within: Value
    decay: Value  # [n, H, 1, 1], of the memory over the chunk


def delta_rule(
    op: Op, qkv: tuple[Value, Value, Value], gates: tuple[Value, Value], state: Value, heads: tuple[int, int]
) -> tuple[Value, Value]:
    """Output [1, seq, H * V] and present state [1, H, K, V], all float32; `gates` are log decay and update rate.

    The chunked form of Yang et al., "Gated Delta Networks" (2024), as transformers' `torch_chunk_gated_delta_rule`.
    Padding changes nothing: its keys are 0, its decay is 1 and its update rate 0.
    """
    seq = op.Shape(qkv[0], start=1, end=2)
    size = op.Min(seq, [CHUNK])
    count = op.Div(op.Add(seq, op.Sub(size, [1])), size)
    pads = op.Concat([0, 0, 0, 0], op.Sub(op.Mul(count, size), seq), [0], axis=0)

    def cut(x: Value, heads: int, width: int) -> Value:  # [1, seq, heads * width] to [n, heads, C, width]
        cells = op.Reshape(op.Pad(x, pads), op.Concat(count, size, [heads, width], axis=0), allowzero=1)
        return op.Transpose(cells, perm=[0, 2, 1, 3])

    keys, values = (int(width) for width in state.shape[2:])
    q, k = (_repeat(op, cut(x, heads[0], keys), count, size, heads, keys) for x in qkv[:2])
    v, decay, rate = cut(qkv[2], heads[1], values), *(cut(gate, heads[1], 1) for gate in gates)
    chunks = _prepare(op, (op.Mul(q, [keys**-0.5]), k, v), decay, rate, op.Concat(size, size, axis=0))
    out, present = _scan(op, chunks, state)
    rows = op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), [1, -1, heads[1] * values])
    # TensorRT cannot see that a slice has the length of the prompt, and then fuses less behind it: so it is told.
    told = op.Concat([1], seq, [heads[1] * values], axis=0)
    return op.Reshape(op.Slice(rows, [0], seq, [1]), told, allowzero=1), present


def _repeat(op: Op, x: Value, count: Value, size: Value, heads: tuple[int, int], width: int) -> Value:
    """[n, key heads, C, K] to [n, H, C, K]: each key head serves consecutive value heads."""
    times = heads[1] // heads[0]
    if times == 1:
        return x
    wide = op.Concat(*[op.Unsqueeze(x, [2])] * times, axis=2)
    return op.Reshape(wide, op.Concat(count, [heads[1]], size, [width], axis=0), allowzero=1)


def _prepare(op: Op, qkv: tuple[Value, Value, Value], decay: Value, rate: Value, square: Value) -> Chunks:
    """All that does not depend on the memory in front of a chunk, for all chunks at once."""
    q, k, v = qkv
    lower = _mask(op, np.tri(CHUNK, dtype=np.float32), square, "lower")
    total = op.MatMul(lower, decay)  # log decay from the beginning of the chunk to each token [n, H, C, 1]
    turned = op.Transpose(total, perm=[0, 1, 3, 2])
    between = op.Exp(op.Add(op.Sub(total, turned), op.Mul(op.Sub([1.0], lower), [NEVER])))
    transposed = op.Transpose(k, perm=[0, 1, 3, 2])
    paced = op.Mul(k, rate)
    own = op.Mul(op.MatMul(paced, transposed), between)
    solved, since = _inverse(op, own, square), op.Exp(total)
    last = op.Slice(total, [-1], [END], [2])
    return Chunks(
        queries=op.Mul(q, since),
        keys=op.Mul(k, op.Exp(op.Sub(last, total))),
        reads=op.MatMul(solved, op.Mul(paced, since)),
        updates=op.MatMul(solved, op.Mul(v, rate)),
        within=op.Mul(op.MatMul(q, transposed), between),
        decay=op.Exp(last),
    )


def _inverse(op: Op, own: Value, square: Value) -> Value:
    """The inverse of 1 + the part of `own` [n, H, C, C] below its diagonal.

    Blocks on the diagonal double in size: [[P, 0], [R, Q]] has the inverse [[P', 0], [-Q' R P', Q']]. As exact as
    substitution row by row; the product of 1 + powers, which takes as many steps, loses all digits when keys are alike.
    """
    index, width = np.arange(CHUNK), 1
    inverse = _mask(op, np.eye(CHUNK, dtype=np.float32), square, "ones")
    while width < CHUNK:
        block = index // width
        inside = (block[:, None] // 2 == block // 2) & (block[:, None] > block)
        corner = op.Mul(own, _mask(op, inside.astype(np.float32), square, f"corners_{width}"))
        step = corner if width == 1 else op.MatMul(op.MatMul(inverse, corner), inverse)
        inverse, width = op.Sub(inverse, step), 2 * width
    return inverse


def _mask(op: Op, values: Any, square: Value, name: str) -> Value:
    """The corner [C, C] of a constant that all layers share."""
    made = op.builder.root.graph.meta.setdefault("masks", {})
    if name not in made:
        made[name] = op.initializer(ir.tensor(values), name=name)
    return op.Slice(made[name], [0, 0], square)


def _scan(op: Op, chunks: Chunks, state: Value) -> tuple[Value, Value]:
    """Chunk by chunk through the memory: output [n, H, C, V] and present state [1, H, K, V]."""

    def step(op: Op, memory: Value, *parts: Value) -> tuple[Value, Value]:
        op.builder.push_module("chunk", "")  # values of a scan must not have the names of those around it
        queries, keys, reads, updates, within, decay = parts
        written = op.Sub(updates, op.MatMul(reads, memory))
        out = op.Add(op.MatMul(queries, memory), op.MatMul(within, written))
        kept = op.Add(op.Mul(memory, decay), op.MatMul(op.Transpose(keys, perm=[0, 2, 1]), written))
        return kept, out

    names = ["memory", *vars(chunks)]
    shape = list(state.shape[1:])
    made = [ir.Value(name=name, type=ir.TensorType(F32), shape=ir.Shape(shape if name == "memory" else [None] * 3))
            for name in (*names, "kept", "out")]  # fmt: skip
    body = op.builder.subgraph(step, made[: len(names)], made[len(names) :], name="chunks")
    memory, out = op.Scan(
        op.Squeeze(state, [0]), *vars(chunks).values(), body=body, num_scan_inputs=len(names) - 1, _outputs=2
    )
    return out, op.Unsqueeze(memory, [0])
