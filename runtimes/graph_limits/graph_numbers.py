"""Rules of operators on each number, and bounds of the numbers themselves, from which sizes are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .graph_calls import (
    Call,
    Made,
    Rule,
    result,
    spread,
)
from .graph_shapes import axes_of
from .graph_values import Known
from .monomials import (
    MOST,
    ONE,
    Scale,
    Size,
    over,
    product,
    symbol,
    times,
)

INTEGERS = (6, 7)  # types that keep the numbers of others, or wrap around to smaller ones
WRAPS = 1 << 31


def _elementwise(call: Call) -> Made:
    return result(spread(call, *filter(None, call.given)))


def _first(call: Call) -> Made:
    return result(call.at(0).dims)


def _cast(call: Call) -> Made:
    x = call.at(0)
    keep = call.number("to") in INTEGERS
    return result(x.dims, x.numbers if keep else None, x.most if keep else None)


def _cast_like(call: Call) -> Made:
    x = call.at(0)
    most = 128 if call.at(1).largest(call.scale) is None else WRAPS  # what is known has 32 or 64 bits
    small = x.numbers is not None and all(size.is_number() and 0 <= size.factor < most for size in x.numbers)
    return result(x.dims, x.numbers if small else None)


def _same(call: Call) -> Made:
    return Made([call.at(0)])


def _numeric(rule: Callable[[Scale, Size, Size], Size], most: Callable[[Scale, Size, Size], Size]) -> Rule:
    """An operator on each pair of numbers; `most` makes bounds of all its results from those of all numbers."""

    def apply(call: Call) -> Made:
        dims = spread(call, *filter(None, call.given))
        one, other, scale = call.at(0), call.at(1), call.scale
        if len(call.given) == 2 and (pairs := _pairs(one, other, dims)):
            made = [rule(scale, *pair) for pair in pairs]
            return result(dims, made) if all(scale.value(size) < MOST for size in made) else result(dims)
        largest = one.largest(scale), other.largest(scale)
        if largest[0] is None or largest[1] is None or len(call.given) != 2:
            return result(dims)
        bound = most(scale, largest[0], largest[1])
        return result(dims, None, bound._replace(exact=False)) if scale.value(bound) < MOST else result(dims)

    return apply


def _pairs(one: Known, other: Known, dims: tuple[Size, ...]) -> list[tuple[Size, Size]]:
    """Which numbers meet, where each value has one number or is as long as the result; none where that is not known."""
    if not one.numbers or not other.numbers:
        return []
    count = max(len(one.numbers), len(other.numbers))
    whole = [known for known in (one, other) if len(known.numbers or ()) > 1]
    if any(product(known.dims) != product(dims) or len(known.numbers or ()) != count for known in whole):
        return []
    return list(zip(*(known.numbers * (count // len(known.numbers)) for known in (one, other) if known.numbers),
                    strict=True))  # fmt: skip


def _difference(scale: Scale, one: Size, other: Size) -> Size:
    if one.is_number() and other.is_number():
        return Size(one.factor - other.factor)
    if one.exact and one.powers and other.is_number() and other.factor >= 0:  # neither is below zero
        return scale.larger(one, other)._replace(exact=False)
    return scale.plus(one, other)._replace(exact=False)


def _sum(scale: Scale, one: Size, other: Size) -> Size:
    if one.is_number() and other.is_number():
        return Size(one.factor + other.factor)
    return scale.plus(one, other)


def _product(_: Scale, one: Size, other: Size) -> Size:
    return times(one, other)


def _quotient(scale: Scale, one: Size, other: Size) -> Size:
    if one.is_number() and other.is_number() and other.factor > 0 and one.factor >= 0:
        return Size(one.factor // other.factor)
    made = over(one, other)
    # Sides of a grid are multiples of the blocks that are merged, so that their quotient is exact.
    whole = other.is_number() and one.exact and one.factor == 1 and scale.sizes.get("merge", 1) % other.factor == 0
    return made if whole else made._replace(exact=False)


def _smaller(scale: Scale, one: Size, other: Size) -> Size:
    """Of two numbers that are not below zero."""
    if one.is_number() and other.is_number():
        return min(one, other)
    return scale.smaller(one, other)


def _smaller_of_any(scale: Scale, one: Size, other: Size) -> Size:
    """The smaller one may be far below zero."""
    if one.is_number() and other.is_number():
        return min(one, other)
    return scale.larger(one, other)._replace(exact=False)


def _larger(scale: Scale, one: Size, other: Size) -> Size:
    return max(one, other) if one.is_number() and other.is_number() else scale.larger(one, other)


def _smallest(call: Call) -> Made:
    """The smaller of two numbers is something that varies, so that products and quotients with it stay exact."""
    natural = all(known is not None and known.natural for known in call.given)
    made = _numeric(_smaller if natural else _smaller_of_any, _smaller if natural else Scale.larger)(call)
    known = made.results[0]
    if not natural:
        return made
    if known.numbers is None or len(known.numbers) != 1 or known.numbers[0].is_number():
        return made
    name = call.outputs[0]
    call.scale.sizes[name] = max(call.scale.value(known.numbers[0]), 1)
    return result(known.dims, [symbol(name)])


def _negative(call: Call) -> Made:
    x = call.at(0)
    numbers = x.numbers and [Size(-size.factor) if size.is_number() else size._replace(exact=False)
                             for size in x.numbers]  # fmt: skip
    return result(x.dims, numbers, x.most)


def _where(call: Call) -> Made:
    dims = spread(call, *(call.at(index) for index in range(3)))
    largest = [call.at(index).largest(call.scale) for index in (1, 2)]
    most = None if None in largest else call.scale.larger(*(size for size in largest if size is not None))
    return result(dims, None, most)


def _reduce(call: Call) -> Made:
    x = call.at(0)
    rank = len(x.dims)
    axes = list(range(rank)) if call.optional(1) is None else axes_of(call, 1, rank)
    keep = call.number("keepdims", 1)
    dims = [ONE if place in axes else size for place, size in enumerate(x.dims) if keep or place not in axes]
    if x.numbers is None or len(axes) != rank or not x.numbers:
        return result(dims)
    rules: Mapping[str, Callable[[Size, Size], Size]] = {"ReduceSum": call.scale.plus, "ReduceProd": times}
    combine = rules.get(call.kind, call.scale.larger)
    total = x.numbers[0]
    for number in x.numbers[1:]:
        total = combine(total, number)
    if call.kind in ("ReduceMean", "ReduceMin") and len(x.numbers) > 1:
        total = total._replace(exact=False)
    return result(dims, [total]) if call.scale.value(total) < MOST else result(dims)


BITS = ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "LessOrEqual")
ALIKE = """
    Cos CumSum DequantizeLinear Exp FastGelu Floor Gelu LayerNormalization QuantizeLinear QuickGelu RMSNormalization
    RotaryEmbedding ScatterElements ScatterND Sigmoid SimplifiedLayerNormalization Sin Softmax Softplus Sqrt Swish
    TensorScatter
"""
NUMBERS: Mapping[str, Rule] = {
    **dict.fromkeys(BITS, _elementwise),
    **dict.fromkeys(ALIKE.split(), _first),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), _reduce),
    "Add": _numeric(_sum, Scale.plus), "Sub": _numeric(_difference, Scale.plus),
    "Mul": _numeric(_product, _product), "Div": _numeric(_quotient, lambda _, one, other: one),
    "Max": _numeric(_larger, Scale.larger), "Min": _smallest,
    "Neg": _negative, "Where": _where, "Cast": _cast, "CastLike": _cast_like, "Identity": _same,
}  # fmt: skip
