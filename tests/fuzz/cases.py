"""Cases for kernels: right ones with what they should give, and the same with sizes and values that do not fit.

What is right is written down here a second time, in a few lines, and not taken from the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.fuzz.driver import Array, Case, Tensor

TYPES = {
    "MatMulInt": (np.float32, np.uint8, np.float16, np.uint8, np.float32),
    "AttentionBf16": (np.float32, np.float32, np.float32),
    "CachedAttention": (np.float32, np.float32, np.float32, np.float16, np.float16, np.int32),
    "CachedAttentionInt8": (*(np.float32,) * 3, np.int8, np.int8, np.int32, np.float32, np.float32),
    "NormRotary": (*(np.float32,) * 4, np.int64, np.float32, np.float32),
}
JOINED = {2: "Two", 3: "Three", 4: "Four"}  # products of one input
MOST, MOST_INPUTS = 2**31 - 1, 17
BLOCKS = dict.fromkeys((2, 3, 4), (16, 32, 64, 128)) | {8: (16, 32, 64, 128, 256)}
EXTREMES = (0, -1, 1, 2, 3, 17, MOST, MOST + 1, -MOST, 2**32, 2**62, 2**63 - 1, -(2**63), 2**61 + 8)


def product(draw: np.random.Generator, **chosen: int) -> Case:
    """A right product; lengths are seldom multiples of a vector.

    `chosen`: inputs, outputs, rows, bits, block, and zeros: whether there are zero points.
    """
    bits = chosen.get("bits") or int(draw.choice([2, 3, 4, 8]))
    block = chosen.get("block") or int(draw.choice(BLOCKS[bits]))
    inputs = chosen.get("inputs") or int(draw.integers(1, 300))
    outputs = chosen.get("outputs") or int(draw.integers(1, 140))
    rows = [chosen["rows"]] if "rows" in chosen else [int(size) for size in draw.integers(1, 4, draw.integers(0, 4))]
    blocks = -(-inputs // block)
    x = draw.normal(size=(*rows, inputs)).astype(np.float32)
    weights = draw.integers(0, 256, (outputs, blocks * block * bits // 8), np.uint8)
    scales = draw.normal(0, 0.1, (outputs, blocks)).astype(np.float16)
    zeros = draw.integers(0, 256, (outputs, (blocks + 1) // 2), np.uint8)
    bias = draw.normal(size=outputs).astype(np.float32)
    given = (chosen.get("zeros", draw.integers(2)), draw.integers(2))
    optional = [Tensor.of(part) if wanted else None for part, wanted in zip((zeros, bias), given, strict=True)]
    if bits == 8:
        optional[0] = None  # which these weights have not
    return Case(f"MatMulInt{bits}", (inputs, outputs, block), (*map(Tensor.of, (x, weights, scales)), *optional))


def joined_product(draw: np.random.Generator, **chosen: int) -> Case:
    """Right products of one input. `chosen` as of `product`, and count."""
    count, first = chosen.pop("count", 0) or int(draw.integers(2, 5)), product(draw, **chosen)
    inputs, _, block = first.attributes
    bits, zeros = int(first.operator[-1]), int(first.inputs[3] is not None)
    parts = [first, *(product(draw, inputs=inputs, block=block, bits=bits, zeros=zeros) for _ in range(count - 1))]
    needed, optional = ([each for part in parts for each in part.inputs[which]] for which in (slice(1, 3), slice(3, 5)))
    attributes = (inputs, *(part.attributes[1] for part in parts), block)
    return Case(JOINED[count] + first.operator, attributes, (first.inputs[0], *needed, *optional))


def signed_product(inputs: int, outputs: int, rows: int) -> Case:
    """A right product of whole rows of signed bytes."""
    draw = np.random.default_rng(inputs + outputs)
    weights = draw.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    x, scales, bias = draw.normal(size=(rows, inputs)), np.ones(outputs, np.float16), np.ones(outputs, np.float32)
    return Case("MatMulInt8Rows", (), tuple(Tensor.of(part) for part in (x.astype(np.float32), weights, scales, bias)))


def attention(draw: np.random.Generator, **chosen: int) -> Case:
    """Right attention over up to three tiles of keys. `chosen`: heads, width, queries, keys."""
    batch = int(draw.integers(1, 3))
    heads = chosen.get("heads") or int(draw.integers(1, 3))
    width = chosen.get("width") or 2 * int(draw.integers(1, 129) if draw.integers(4) == 0 else draw.integers(1, 40))
    queries, keys = (chosen.get(name) or int(draw.integers(1, 140)) for name in ("queries", "keys"))
    shapes = ((batch, queries), (batch, keys), (batch, keys))
    inputs = tuple(Tensor.of(draw.normal(size=(*s, heads * width)).astype(np.float32)) for s in shapes)
    return Case("AttentionBf16", (heads,), inputs)


def cached(draw: np.random.Generator, **chosen: int) -> Case:
    """Right attention over a cache, seldom of more than a range. `chosen`: group, width, queries, past, and bytes."""
    batch, kv_heads = (int(size) for size in draw.integers(1, 3, 2))
    group = chosen.get("group") or int(draw.integers(1, 5))
    width = chosen.get("width") or 16 * int(draw.integers(1, 17) if draw.integers(4) == 0 else draw.integers(1, 4))
    queries = chosen.get("queries") or int(draw.integers(1, 4) if draw.integers(2) else draw.integers(1, 120))
    past = [chosen.get("past", int(draw.integers(0, 140 if draw.integers(4) else 1200))) for _ in range(batch)]
    capacity = max(past) + queries + int(draw.integers(0, 9))
    shapes: list[tuple[int, ...]] = [
        (batch, queries, heads * width) for heads in (kv_heads * group, kv_heads, kv_heads)
    ]
    shapes += [(batch, kv_heads, capacity, width)] * 2
    heads, lengths = (kv_heads * group, kv_heads), Tensor.of(np.array(past, np.int32))
    if not chosen.get("bytes", int(draw.integers(2))):
        kinds = TYPES["CachedAttention"]
        parts = [draw.normal(size=shape).astype(kind) for shape, kind in zip(shapes, kinds, strict=False)]
        return Case("CachedAttention", heads, (*map(Tensor.of, parts), lengths))
    new: list[Array] = [draw.normal(size=shape).astype(np.float32) for shape in shapes[:3]]
    kept: list[Array] = [draw.integers(-128, 128, shape).astype(np.int8) for shape in shapes[3:]]
    scales = [draw.uniform(0.01, 0.03, (1, kv_heads, 1, width)).astype(np.float32) for _ in range(2)]
    return Case("CachedAttentionInt8", heads, (*map(Tensor.of, new + kept), lengths, *map(Tensor.of, scales)))


def rotary(draw: np.random.Generator, **chosen: int) -> Case:
    """Right heads to norm and to turn. `chosen`: rows, and width with turned, of which 0 are all."""
    batch, heads, kv_heads = (int(size) for size in draw.integers(1, 5, 3))
    rows = chosen.get("rows") or int(draw.integers(1, 20))
    width = chosen.get("width") or 2 * int(draw.integers(1, 80))
    turned = chosen.get("turned", 2 * int(draw.integers(0, width // 2 + 1)))
    known, pairs = int(draw.integers(1, 40)), (turned or width) // 2
    shapes: list[tuple[int, ...]] = [(batch, rows, heads * width), (batch, rows, kv_heads * width), (width,), (width,)]
    parts: list[Array] = [draw.normal(size=shape).astype(np.float32) for shape in shapes]
    parts += [draw.integers(0, known, (batch, rows))]
    parts += [draw.uniform(-1, 1, (known, pairs)).astype(np.float32) for _ in range(2)]
    epsilon = float(draw.choice([1e-6, 1e-5, 0.3]))
    return Case("NormRotary", (heads, kv_heads, turned), tuple(map(Tensor.of, parts)), (epsilon,))


def right_case(draw: np.random.Generator) -> Case:
    return (attention, cached, product, product, joined_product, rotary)[draw.integers(6)](draw)


def wrong_case(draw: np.random.Generator) -> Case:
    """A right case with one to three changes, which may still be right."""
    case = right_case(draw)
    for _ in range(draw.integers(1, 4)):
        case = CHANGES[draw.integers(len(CHANGES))](case, draw)
    return case


def is_right(case: Case) -> bool:
    """Whether the contract of its operator holds."""
    if any(tensor is not None and len(tensor.dims) > 4 for tensor in case.inputs):
        return False
    return RIGHT.get(case.operator, _right_products)(case)


def expected_dims(case: Case) -> tuple[tuple[int, ...], ...]:
    """The shapes of what a right case gives."""
    assert case.inputs[0] is not None
    dims = case.inputs[0].dims
    if case.operator == "NormRotary":
        return tuple(tensor.dims for tensor in case.inputs[:2] if tensor is not None)
    return tuple((*dims[:-1], size) for size in case.attributes[1:-1]) if "MatMulInt" in case.operator else (dims,)


def expected(case: Case) -> tuple[Array, Array]:
    """What a right case gives, flat, and by how much each value may differ."""
    if case.operator in EXPECTED:
        return EXPECTED[case.operator](case)
    made, bounds = zip(*map(_multiply, products(case)), strict=True)
    return np.concatenate(made), np.concatenate(bounds)


def has_finite_values(case: Case) -> bool:
    """Whether values are such that the result is one that can be compared."""
    present = [tensor.values for tensor in case.inputs if tensor is not None]
    return all((np.abs(part) < 100).all() for part in present if np.issubdtype(part.dtype, np.floating))


def _count(case: Case) -> int:
    """How many products a case has."""
    return next((count for count, name in JOINED.items() if case.operator.startswith(name)), 1)


def products(case: Case) -> list[Case]:
    """Each of the products of one input as a case of its own."""
    count, (inputs, *outputs, block) = _count(case), case.attributes
    given = [*case.inputs, *(None,) * (1 + 4 * count - len(case.inputs))]
    needed, optional = given[1 : 1 + 2 * count], given[1 + 2 * count :]
    name = case.operator.removeprefix(JOINED.get(count, ""))
    return [
        Case(name, (inputs, size, block), (given[0], *needed[2 * i : 2 * i + 2], *optional[2 * i : 2 * i + 2]))
        for i, size in enumerate(outputs)
    ]


def _right_products(case: Case) -> bool:
    count, each = _count(case), products(case)
    alike = len({part.inputs[3] is None for part in each}) == 1
    return alike and 1 + 2 * count <= len(case.inputs) <= 1 + 4 * count and all(map(_right_product, each))


def _right_product(case: Case) -> bool:
    inputs, outputs, block = case.attributes
    if not (1 <= inputs <= MOST and 1 <= outputs <= MOST and block in BLOCKS[int(case.operator[-1])]):
        return False
    if case.operator == "MatMulInt8" and len(case.inputs) > 3 and case.inputs[3] is not None:
        return False
    if None in case.inputs[:3]:
        return False
    blocks = -(-inputs // block)
    sizes = (blocks * block * int(case.operator[-1]) // 8, blocks, (blocks + 1) // 2, 1)
    x = case.inputs[0]
    return x is not None and bool(x.dims) and x.dims[-1] == inputs and all(
        tensor is None or (_in_rows(tensor, outputs) and math.prod(tensor.dims) == outputs * size)
        for tensor, size in zip(case.inputs[1:], sizes, strict=False)
    )  # fmt: skip


def _in_rows(tensor: Tensor, rows: int) -> bool:
    return len(tensor.dims) == 1 or (bool(tensor.dims) and tensor.dims[0] == rows)


def _right_attention(case: Case) -> bool:
    heads = case.attributes[0]
    if len(case.inputs) != 3 or not 1 <= heads <= MOST:
        return False
    shapes = [tensor.dims for tensor in case.inputs if tensor is not None]
    if len(shapes) != 3 or {len(shape) for shape in shapes} != {3}:
        return False
    q, k, v = shapes
    alike = q[0] == k[0] == v[0] and q[2] == k[2] == v[2] and k[1] == v[1]
    width, rest = divmod(q[2], heads)
    return alike and not rest and 2 <= width <= 256 and width % 2 == 0 and (not math.prod(q) or bool(math.prod(k)))


def _right_cached(case: Case) -> bool:
    heads, kv_heads = case.attributes
    shapes, count = [tensor.dims for tensor in case.inputs if tensor is not None], len(TYPES[case.operator])
    if not (1 <= kv_heads <= 1 << 14 and 1 <= heads <= 1 << 14) or heads % kv_heads:
        return False
    if not len(shapes) == len(case.inputs) == count or [len(shape) for shape in shapes[:6]] != [3, 3, 3, 4, 4, 1]:
        return False
    q, k, v, key, value, past, *scales = shapes
    if key != value or any(shape != (1, kv_heads, 1, key[3]) for shape in scales):
        return False
    batch, width, own = key[0], key[3], (q[0], q[1], kv_heads * key[3])
    alike = q[0] == batch and q[2] == heads * width and k == v == own and key[1] == kv_heads and past == (batch,)
    if not alike or not (16 <= width <= 256 and width % 16 == 0):
        return False
    lengths = case.inputs[5]
    assert lengths is not None
    return not math.prod(q) or all(0 <= length <= key[2] - q[1] for length in lengths.values.tolist())


def _right_rotary(case: Case) -> bool:
    heads, kv_heads, turned = case.attributes
    shapes = [tensor.dims for tensor in case.inputs if tensor is not None]
    if not len(shapes) == len(case.inputs) == 7 or [len(shape) for shape in shapes] != [3, 3, 1, 1, 2, 2, 2]:
        return False
    if not (1 <= heads <= 1 << 14 and 1 <= kv_heads <= 1 << 14 and 0 <= turned <= 1 << 14 and 0 <= case.floats[0] <= 1):
        return False
    q, k, q_weight, k_weight, positions, cos, sin = shapes
    width, turned = q_weight[0], turned or q_weight[0]
    alike = q == (*positions, heads * width) and k == (*positions, kv_heads * width) and k_weight == q_weight
    if not alike or not 1 <= turned <= width or turned % 2 or not cos == sin == (cos[0], turned // 2):
        return False
    given = case.inputs[4]
    assert given is not None
    return all(0 <= position < cos[0] for position in given.values.ravel().tolist())


RIGHT: dict[str, Callable[[Case], bool]] = {
    "AttentionBf16": _right_attention,
    **dict.fromkeys(("CachedAttention", "CachedAttentionInt8"), _right_cached),
    "NormRotary": _right_rotary,
}


def _levels(packed: Array, bits: int) -> Array:
    """Values of a few bits [outputs, inputs] of rows of bytes."""
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    if bits != 3:
        levels: Array = np.packbits(stream.reshape(len(packed), -1, bits), axis=2, bitorder="little")[..., 0]
        return levels
    inputs = stream.shape[1] // 3
    low = stream[:, : 2 * inputs].reshape(len(packed), inputs, 2)
    whole: Array = low[..., 0] + 2 * low[..., 1] + 4 * stream[:, 2 * inputs :]
    return whole


def _multiply(case: Case) -> tuple[Array, Array]:
    inputs, outputs, block = case.attributes
    given = [None if tensor is None else tensor.values for tensor in case.inputs]
    x, packed, scales = (part for part in given[:3] if part is not None)
    zeros, bias = (*given[3:], None, None)[:2]
    bits, blocks = int(case.operator[-1]), -(-inputs // block)
    levels = _levels(packed.reshape(outputs, -1), bits).reshape(outputs, blocks, block).astype(np.float64)
    points: Array = np.full((outputs, blocks), 2 ** (bits - 1))
    if zeros is not None:
        points = _levels(zeros.reshape(outputs, -1), 4)[:, :blocks].astype(int) + 2 ** (bits - 1) - 8
    matrix = ((levels - points[..., None]) * scales.reshape(outputs, blocks, 1).astype(np.float64)).reshape(outputs, -1)
    rounded = _round_blocks(x.reshape(-1, inputs), block)
    added = np.zeros(outputs) if bias is None else bias.reshape(-1)
    out = rounded @ matrix.T + added
    lengths = np.linalg.norm(rounded, axis=1)[:, None] * np.linalg.norm(matrix, axis=1) + np.abs(added)
    return out.ravel(), 1e-5 * lengths.ravel() + 1e-6


def _round_blocks(x: Array, block: int) -> Array:
    """Activations rounded to int8, block by block."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)
    largest = np.abs(padded).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest >= 1e-30)
    scale = np.where(largest >= 1e-30, largest / np.float32(127), 0)
    rounded: Array = (np.rint(padded * inverse) * scale.astype(np.float64)).reshape(len(x), -1)
    return rounded


def _attend(case: Case) -> tuple[Array, Array]:
    heads = case.attributes[0]
    q, k, v = (
        tensor.values.astype(np.float64).reshape(*tensor.dims[:2], heads, -1).transpose(0, 2, 1, 3)
        for tensor in case.inputs
        if tensor is not None
    )
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[3])
    # Each score is off by two roundings to 8 bits of the terms that it is the sum of.
    doubt = (np.abs(q) @ np.abs(k).transpose(0, 1, 3, 2) / math.sqrt(q.shape[3])).max(axis=(1, 2, 3)) * 2**-8
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    out = (weights / weights.sum(axis=3, keepdims=True) @ v).transpose(0, 2, 1, 3)
    bound = (np.abs(v).max(axis=(1, 2, 3)) * (2**-7 + doubt))[:, None, None]
    bound = np.broadcast_to(bound, (len(out), out[0].size, 1))
    return out.ravel(), bound.ravel()


def _attend_cached(case: Case) -> tuple[Array, Array]:
    heads, kv_heads = case.attributes
    q, k, v, keys, values, past, *scales = (tensor.values for tensor in case.inputs if tensor is not None)
    steps: list[Array | None] = [*scales] or [None, None]
    (batch, queries, _), width = q.shape, keys.shape[3]
    out, bound = np.zeros((batch, queries, heads, width)), np.zeros((batch, queries, heads, width))
    for row in range(batch):
        end = past[row] + queries
        hidden = np.arange(end) > past[row] + np.arange(queries)[:, None]
        for head in range(heads):
            own = head // (heads // kv_heads)
            seen = []
            for cache, new, step in ((keys, k, steps[0]), (values, v, steps[1])):
                fresh = new[row].reshape(queries, kv_heads, width)[:, own]
                each = 1.0 if step is None else step[0, own, 0]
                rounded = fresh.astype(np.float16) if step is None else np.clip(np.rint(fresh / each), -128, 127)
                seen.append(np.concatenate([cache[row, own, : past[row]], rounded]).astype(np.float64) * each)
            scores = q[row].reshape(queries, heads, width)[:, head].astype(np.float64) @ seen[0].T / math.sqrt(width)
            # Of values up to 8 and of scores that are sums of terms up to 80, which is more than both usually are
            terms = (np.abs(q[row].reshape(queries, heads, width)[:, head]) @ np.abs(seen[0]).T).max() / math.sqrt(
                width
            )
            bound[row, :, head] = 2e-5 * max(1, terms / 80) * max(1, np.abs(seen[1]).max() / 8)
            scores[hidden] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[row, :, head] = weights / weights.sum(axis=1, keepdims=True) @ seen[1]
    return out.ravel(), bound.ravel()


def _norm_and_turn(case: Case) -> tuple[Array, Array]:
    q, k, q_weight, k_weight, positions, cos, sin = (t.values.astype(np.float64) for t in case.inputs if t is not None)
    cos, sin = (table[positions.astype(int)][:, :, None] for table in (cos, sin))
    pairs, made = cos.shape[-1], []
    for x, weight in ((q, q_weight), (k, k_weight)):
        split = x.reshape(*positions.shape, -1, len(weight))
        normed = split / np.sqrt((split**2).mean(axis=-1, keepdims=True) + case.floats[0]) * weight
        one, other, rest = np.split(normed, [pairs, 2 * pairs], axis=-1)
        made.append(np.concatenate([one * cos - other * sin, other * cos + one * sin, rest], axis=-1).ravel())
        terms = (abs(one * cos) + abs(other * sin), abs(other * cos) + abs(one * sin), abs(rest))
        made.append(np.concatenate(terms, axis=-1).ravel())
    # A tenth of the bound is what the roundings of one number come to, the rest those of up to 30 sums of squares.
    return np.concatenate(made[::2]), 4e-6 * np.concatenate(made[1::2]) + 1e-30


EXPECTED: dict[str, Callable[[Case], tuple[Array, Array]]] = {
    "AttentionBf16": _attend,
    **dict.fromkeys(("CachedAttention", "CachedAttentionInt8"), _attend_cached),
    "NormRotary": _norm_and_turn,
}

Change = Callable[[Case, np.random.Generator], Case]


def _with_input(case: Case, index: int, tensor: Tensor | None) -> Case:
    return replace(case, inputs=(*case.inputs[:index], tensor, *case.inputs[index + 1 :]))


def _some_input(case: Case, draw: np.random.Generator) -> int:
    return int(draw.integers(len(case.inputs))) if case.inputs else -1


def _refill(case: Case, index: int, dims: tuple[int, ...], draw: np.random.Generator) -> Case:
    """An input with other dimensions, and with as many values as they say."""
    size, dtype = math.prod(dims), _type_of(case, index)
    if size > 2**20:
        return case
    values = draw.integers(0, 256, size, np.uint8) if dtype is np.uint8 else draw.normal(size=size).astype(dtype)
    return _with_input(case, index, Tensor(dims, values.reshape(dims) if size else values))


def _type_of(case: Case, index: int) -> Any:
    if case.operator in RIGHT:
        kinds = TYPES[case.operator]
        return kinds[min(index, len(kinds) - 1)]
    count, kinds = _count(case), TYPES["MatMulInt"]
    return kinds[0] if not index else kinds[(1 if index <= 2 * count else 3) + (index - 1) % 2]


def change_attribute(case: Case, draw: np.random.Generator) -> Case:
    index = int(draw.integers(len(case.attributes)))
    value = case.attributes[index]
    near = (value - 1, value + 1, 2 * value, value // 2, -value)
    chosen = int(draw.choice(near)) if draw.integers(2) else EXTREMES[draw.integers(len(EXTREMES))]
    chosen = max(-(2**63), min(2**63 - 1, chosen))
    return replace(case, attributes=(*case.attributes[:index], chosen, *case.attributes[index + 1 :]))


def change_float(case: Case, draw: np.random.Generator) -> Case:
    index = int(draw.integers(max(len(case.floats), 1)))
    chosen = float(draw.choice([1.0, 1e-12, -1e-9, 1.5, np.inf, -np.inf, np.nan]))
    return replace(case, floats=(*case.floats[:index], chosen, *case.floats[index + 1 :])) if case.floats else case


def change_dimension(case: Case, draw: np.random.Generator) -> Case:
    index = _some_input(case, draw)
    tensor = case.inputs[index] if index >= 0 else None
    if tensor is None or not tensor.dims:
        return case
    axis, size = int(draw.integers(len(tensor.dims))), 0
    size = max(0, int(draw.choice([0, 1, tensor.dims[axis] - 1, tensor.dims[axis] + 1, 2 * tensor.dims[axis]])))
    return _refill(case, index, (*tensor.dims[:axis], size, *tensor.dims[axis + 1 :]), draw)


def change_rank(case: Case, draw: np.random.Generator) -> Case:
    index = _some_input(case, draw)
    tensor = case.inputs[index] if index >= 0 else None
    if tensor is None:
        return case
    dims = tensor.dims
    shapes: list[tuple[int, ...]] = [(), (1, *dims), (*dims, 1), dims[:-1], (math.prod(dims),), tuple(reversed(dims))]
    return _refill(case, index, shapes[draw.integers(len(shapes))][:8], draw)


def empty_of_huge_dimensions(case: Case, draw: np.random.Generator) -> Case:
    index = _some_input(case, draw)
    tensor = case.inputs[index] if index >= 0 else None
    if tensor is None or not tensor.dims:
        return case
    dims = [int(draw.choice([size, 2**31, 2**32, 2**62])) for size in tensor.dims]
    dims[draw.integers(len(dims))] = 0
    return _refill(case, index, tuple(dims), draw)


def lose_input(case: Case, draw: np.random.Generator) -> Case:
    if draw.integers(2) and case.inputs:
        return replace(case, inputs=case.inputs[:-1])
    index = _some_input(case, draw)
    return case if index < 0 else _with_input(case, index, None)


def add_input(case: Case, draw: np.random.Generator) -> Case:
    given = [tensor for tensor in case.inputs if tensor is not None]
    return replace(case, inputs=(*case.inputs, *given[:1])) if len(case.inputs) <= MOST_INPUTS else case


def exchange_inputs(case: Case, draw: np.random.Generator) -> Case:
    """Two of one type, whose shapes then are those of each other."""
    if case.operator != "AttentionBf16" or len(case.inputs) < 3:
        return case
    order = draw.permutation(len(case.inputs))
    return replace(case, inputs=tuple(case.inputs[i] for i in order))


def extreme_values(case: Case, draw: np.random.Generator) -> Case:
    index = _some_input(case, draw)
    tensor = case.inputs[index] if index >= 0 else None
    if tensor is None or not tensor.values.size or not np.issubdtype(tensor.values.dtype, np.floating):
        return case
    values = tensor.values.copy()
    with np.errstate(over="ignore"):
        some = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0, 65504, -1e4, 1e30], values.dtype)
    at = draw.integers(0, values.size, draw.integers(1, 9))
    values.reshape(-1)[at] = draw.choice(some, len(at))
    return _with_input(case, index, Tensor(tensor.dims, values))


CHANGES: tuple[Change, ...] = (change_attribute, change_float, change_dimension, change_rank, empty_of_huge_dimensions,
                               lose_input, add_input, exchange_inputs, extreme_values)  # fmt: skip
