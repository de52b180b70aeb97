"""Rules of operators that cut, join, move and repeat values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .graph_calls import (
    Call,
    Made,
    Rule,
    result,
    spread,
)
from .graph_values import (
    MOST_NUMBERS,
    Known,
    Refused,
    fixed,
)
from .monomials import (
    ONE,
    ZERO,
    Scale,
    Size,
    over,
    product,
)

END = 1 << 31  # behind every axis


def _shape(call: Call) -> Made:
    dims = call.at(0).dims
    chosen = dims[slice(call.number("start"), call.number("end", len(dims)))]
    return result([Size(len(chosen))], chosen)


def _reshape(call: Call) -> Made:
    x, wanted = call.at(0), call.at(1).each("a Reshape")
    copied = {place for place, size in enumerate(wanted)
              if size == ZERO and not call.number("allowzero") and place < len(x.dims)}  # fmt: skip
    made = [x.dims[place] if place in copied else size for place, size in enumerate(wanted)]
    if Size(-1) in made:
        place = made.index(Size(-1))
        left = product(size for index, size in enumerate(x.dims) if index not in copied)
        for index, size in enumerate(made):
            if index not in copied and index != place and size.exact:  # others are one at least
                left = over(left, size)
        rest = (size.exact for index, size in enumerate(made) if index not in copied)
        made[place] = left._replace(exact=left.exact and all(rest))
    if any(size.factor < 0 for size in made):
        raise Refused("it has a Reshape to negative sizes")
    return result(made, x.numbers, x.most)


def _transpose(call: Call) -> Made:
    x = call.at(0)
    order = list(call.settings["perm"].ints) if "perm" in call.settings else list(reversed(range(len(x.dims))))
    if sorted(order) != list(range(len(x.dims))):
        raise Refused(f"it has a Transpose by {order[:8]}")
    return result([x.dims[place] for place in order], None, x.largest(call.scale))


def axes_of(call: Call, index: int, rank: int) -> list[int]:
    """The axes that an input names; Refused where they are not constants, or not among `rank`."""
    axes = fixed(f"axes of {call.kind}", call.at(index))
    if not all(-rank <= axis < rank for axis in axes):
        raise Refused(f"its {call.kind} has the axes {axes[:8]} of {rank}")
    return [axis % rank for axis in axes]


def _unsqueeze(call: Call) -> Made:
    x = call.at(0)
    rank = len(x.dims) + len(call.at(1).numbers or ())
    axes, rest = axes_of(call, 1, rank), iter(x.dims)
    if len(set(axes)) < len(axes):
        raise Refused("it has an Unsqueeze of one axis twice")
    return result([ONE if place in axes else next(rest) for place in range(rank)], x.numbers, x.most)


def _squeeze(call: Call) -> Made:
    x = call.at(0)
    axes = [place for place, size in enumerate(x.dims) if size == ONE]
    if call.optional(1) is not None:
        axes = axes_of(call, 1, len(x.dims))
    return result([size for place, size in enumerate(x.dims) if place not in axes], x.numbers, x.most)


def _concat(call: Call) -> Made:
    given = [known for known in call.given if known is not None]
    rank = len(call.at(0).dims)
    if any(len(known.dims) != rank for known in given) or not rank:
        raise Refused("it has a Concat of values of different ranks")
    axis, made = call.axis(rank), list(call.at(0).dims)
    for known in given[1:]:
        for place, size in enumerate(known.dims):
            bound = call.scale.plus if place == axis else _joined(call.scale)
            made[place] = bound(made[place], size)
    count = sum(MOST_NUMBERS if known.numbers is None else len(known.numbers) for known in given)
    if rank == 1 and count <= MOST_NUMBERS and all(known.numbers is not None for known in given):
        return result(made, [number for known in given for number in known.numbers or ()])
    return result(made)


def _joined(scale: Scale) -> Callable[[Size, Size], Size]:
    """Of an axis on which values have one size: the one that is exact, or the smaller bound."""
    return lambda one, other: one if one.exact else other if other.exact else scale.smaller(one, other)


def _split(call: Call) -> Made:
    x, count = call.at(0), len(call.outputs)
    axis = call.axis(len(x.dims))
    size = x.dims[axis]
    if call.optional(1) is not None:
        parts = [Size(part) for part in fixed("a Split", call.at(1))]
    elif size.is_number():
        parts = [Size(-(-size.factor // count))] * count
    else:
        parts = [size._replace(exact=False)] * count
    if len(parts) != count or any(part.factor < 0 for part in parts):
        raise Refused(f"it has a Split into {len(parts)} parts with {count} outputs")
    return Made([Known((*x.dims[:axis], part, *x.dims[axis + 1 :])) for part in parts])


def _slice(call: Call) -> Made:
    x, start, end = call.at(0), call.at(1), call.at(2)
    rank = len(x.dims)
    axes = axes_of(call, 3, rank) if call.optional(3) is not None else list(range(len(start.numbers or ())))
    if call.optional(4) is not None and any(step != 1 for step in fixed("steps of a Slice", call.at(4))):
        raise Refused("it has a Slice with steps")
    if len(axes) > rank:
        raise Refused("it has a Slice of more axes than there are")
    made = list(x.dims)
    numbers = x.numbers
    for index, axis in enumerate(axes):
        ends = [
            known.numbers[index] if known.numbers and index < len(known.numbers) else None for known in (start, end)
        ]
        made[axis] = _part(call.scale, x.dims[axis], *ends, natural=end.natural)
        steps = call.steps(1, 2) if len(axes) == 1 else None
        if steps is not None and steps.natural and steps.numbers is not None and len(steps.numbers) == 1:
            made[axis] = call.scale.smaller(steps.numbers[0], made[axis])._replace(exact=False)
        if made[axis].is_number() and made[axis] == x.dims[axis]:
            continue
        single = product(x.dims[:axis] + x.dims[axis + 1 :]) == ONE and x.dims[axis].is_number()
        whole = single and all(limit is not None and limit.is_number() for limit in ends)
        first, last = (int(limit.factor) if limit is not None else 0 for limit in ends)
        numbers = numbers[first:last] if numbers is not None and whole and len(axes) == 1 else None
    return result(made, numbers, x.largest(call.scale))


def _part(scale: Scale, size: Size, start: Size | None, end: Size | None, *, natural: bool) -> Size:
    """How many are left of an axis between two places, as far as these are known; `natural`: the end is no negative."""
    if start is None or end is None:
        return size._replace(exact=False)
    if start.is_number() and end.is_number():
        if size.is_number():
            return Size(len(range(int(size.factor))[int(start.factor) : int(end.factor)]))
        if start.factor == 0 and end.factor >= END:
            return size
        if (start.factor < 0) == (end.factor < 0):
            return scale.smaller(size, Size(max(end.factor - start.factor, 0)))._replace(exact=False)
        if start.factor < 0 and end.factor >= END:
            return scale.smaller(size, Size(-start.factor))._replace(exact=False)
        return size._replace(exact=False)
    if start == ZERO and natural:
        return scale.smaller(end, size)._replace(exact=False)
    return size._replace(exact=False)


def _gather(call: Call) -> Made:
    x, index = call.at(0), call.at(1)
    axis = call.axis(len(x.dims))
    dims = (*x.dims[:axis], *index.dims, *x.dims[axis + 1 :])
    if x.numbers is not None and len(x.dims) == 1 and index.numbers is not None:
        chosen = [int(number.factor) for number in index.numbers if number.is_number()]
        if len(chosen) == len(index.numbers) and all(-len(x.numbers) <= place < len(x.numbers) for place in chosen):
            return result(dims, [x.numbers[place] for place in chosen])
    return result(dims, None, x.largest(call.scale))


def _expand(call: Call) -> Made:
    x = call.at(0)
    return result(spread(call, x, Known(call.at(1).each("an Expand"))), None, x.largest(call.scale))


def _range(call: Call) -> Made:
    start, end = (call.at(index).each("a Range") for index in (0, 1))
    step = fixed("steps of a Range", call.at(2))
    if not (len(start) == len(end) == len(step) == 1) or step[0] == 0:
        raise Refused("it has a Range with steps of nothing")
    count = end[0] if start[0] == ZERO else call.scale.plus(start[0], end[0])
    exact = count.exact and start[0] == ZERO and step[0] == 1 and count.factor >= 0
    most = call.scale.plus(start[0], end[0])
    return result([count._replace(factor=abs(count.factor), exact=exact)], None, most._replace(exact=False))


def _pad(call: Call) -> Made:
    x, pads = call.at(0), call.at(1).each("a Pad")
    if len(pads) != 2 * len(x.dims) or call.optional(3) is not None:
        raise Refused(f"it has a Pad of {len(pads)} numbers for {len(x.dims)} axes")
    plus = call.scale.plus
    sides = zip(x.dims, pads[: len(x.dims)], pads[len(x.dims) :], strict=True)
    return result([size if before == behind == ZERO else plus(size, plus(before, behind))._replace(exact=False)
                 for size, before, behind in sides])  # fmt: skip


def _non_zero(call: Call) -> Made:
    x = call.at(0)
    return result([Size(max(len(x.dims), 1)), x.size._replace(exact=False)])


SHAPES: Mapping[str, Rule] = {
    "Shape": _shape, "Reshape": _reshape, "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze,
    "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather, "Expand": _expand, "Range": _range,
    "Pad": _pad, "NonZero": _non_zero,
}  # fmt: skip
