"""Rules of products and of what is fused around them."""

from __future__ import annotations

from collections.abc import Mapping

from .graph_calls import (
    Call,
    Made,
    Rule,
    result,
    spread,
    stretch,
)
from .graph_operators import FUSED, JOINED, PACKED, Prologue
from .graph_values import Known, Refused
from .monomials import (
    ONE,
    ZERO,
    Size,
    product,
    times,
)


def _matmul(call: Call) -> Made:
    one, other = (list(call.at(index).dims) for index in (0, 1))
    if len(one) < 2 or len(other) < 2:
        raise Refused(f"it has a {call.kind} of vectors")
    for dims, name in ((one, "transA"), (other, "transB")):
        if call.number(name):
            dims[-2:] = dims[:-3:-1]
    batch = spread(call, Known(tuple(one[:-2])), Known(tuple(other[:-2])))
    made = (*batch, one[-2], other[-1])
    inner = call.scale.smaller(one[-1], other[-2])
    return Made([Known(made)], times(product(made), inner))


def _packed_matmul(call: Call) -> Made:
    """A product whose attributes say how wide it is, or some of one input."""
    x, columns, count = call.at(0), call.number("K"), len(call.outputs)
    outputs = [call.number(name) for name in (["N"] if count == 1 else [f"N{i}" for i in range(1, count + 1)])]
    if not x.dims or min(outputs) < 1 or columns < 1:
        raise Refused(f"its {call.kind} has no sizes")
    made = [(*x.dims[:-1], Size(size)) for size in outputs]
    all_of_them = product((*x.dims[:-1], Size(sum(outputs))))
    return Made([Known(dims) for dims in made], times(all_of_them, Size(columns)))


def _signed_matmul(call: Call) -> Made:
    """Of weights [outputs, inputs]."""
    x, weights = call.at(0), call.at(1)
    if not x.dims or len(weights.dims) != 2:
        raise Refused(f"its {call.kind} has no sizes")
    made = (*x.dims[:-1], weights.dims[0])
    return Made([Known(made)], times(product(made), weights.dims[1]))


def _with_prologue(rule: Rule, prologue: Prologue) -> Rule:
    def made(call: Call) -> Made:
        x, outputs = call.at(0), call.outputs[:-1] if prologue.adds else call.outputs
        alone = call._replace(given=[x, *call.given[1 + prologue.inputs :]], outputs=outputs)
        results, work = rule(alone)
        return Made([*results, Known(x.dims)] if prologue.adds else results, work)

    return made


def _attention(call: Call) -> Made:
    """[batch, seq, width] or [batch, heads, seq, width]; values may be wider than queries."""
    q, k, v = (call.at(index).dims for index in range(3))
    if len(q) not in (3, 4) or not len(q) == len(k) == len(v) or len(call.given) > 6 or len(call.outputs) > 1:
        raise Refused(f"it has a {call.kind} of another form")
    groups = max(call.number("q_num_heads", 1) // max(call.number("kv_num_heads", 1), 1), 1)
    made = (*q[:-1], times(v[-1], Size(groups)))
    if len(q) == 4:
        made = (*q[:1], stretch(call.scale, q[1], v[1]), q[2], v[-1])
    return Made([Known(made)], times(product(q), k[-2]))


def _cached_attention(call: Call) -> Made:
    """GroupQueryAttention: its caches grow to the length behind the step."""
    q, key, value = call.at(0), call.at(3), call.at(4)
    if len(q.dims) != 3 or len(key.dims) != 4 or len(value.dims) != 4:
        raise Refused("it has a GroupQueryAttention of another form")
    (total,) = call.at(6).each("a GroupQueryAttention")[:1] or (ZERO,)
    caches = [(*known.dims[:2], call.scale.larger(known.dims[2], total), known.dims[3]) for known in (key, value)]
    return Made([q, *map(Known, caches)], times(q.size, total))


def _linear_attention(call: Call) -> Made:
    q, v, state = call.at(0), call.at(2), call.at(3)
    out = v if call.scale.value(v.size) >= call.scale.value(q.size) else q
    return Made([Known(out.dims), Known(state.dims)], times(out.size, product(state.dims[-1:])))


def _conv_with_state(call: Call) -> Made:
    x, weight, state = call.at(0), call.at(1), call.at(3)
    return Made([Known(x.dims), Known(state.dims)], times(x.size, product(weight.dims[-1:])))


def _gates(call: Call) -> Made:
    return Made([Known(spread(call, *(call.at(index) for index in (0, 1)))), Known(call.at(3).dims)])


def _skip_norm(call: Call) -> Made:
    total = Known(spread(call, call.at(0), call.at(1)))
    mean = Known((*total.dims[:-1], ONE))
    return Made([total, mean, mean, total])


def _gather_quantized(call: Call) -> Made:
    x, index = call.at(0), call.at(1)
    if call.number("gather_axis") != 0 or not x.dims:
        raise Refused("it has a GatherBlockQuantized along another axis than the first")
    packed = max(8 // max(call.number("bits", 4), 1), 1)
    return result((*index.dims, *x.dims[1:-1], times(x.dims[-1], Size(packed))))


_PRODUCTS: Mapping[str, Rule] = {**dict.fromkeys((*PACKED, *JOINED), _packed_matmul), "MatMulInt8Rows": _signed_matmul}
PRODUCTS: Mapping[str, Rule] = {
    **dict.fromkeys(("FusedMatMul", "Gemm", "MatMul", "DynamicQuantizeMatMul"), _matmul),
    "MatMulNBits": _packed_matmul, **_PRODUCTS,
    **{name: _with_prologue(_PRODUCTS[product], prologue) for name, (prologue, product) in FUSED.items()},
    **dict.fromkeys(("Attention", "AttentionBf16", "MultiHeadAttention"), _attention),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    "GatherBlockQuantized": _gather_quantized, "GroupQueryAttention": _cached_attention,
    "LinearAttention": _linear_attention, "CausalConvWithState": _conv_with_state, "LinearAttentionGate": _gates,
}  # fmt: skip
