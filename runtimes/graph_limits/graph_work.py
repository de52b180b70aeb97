"""The way through a graph at one scale: what each value holds at most, and how much is multiplied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from .graph_calls import Call, Made
from .graph_numbers import NUMBERS, WRAPS
from .graph_products import PRODUCTS
from .graph_shapes import SHAPES
from .graph_values import Known, Refused, constant
from .monomials import (
    ONE,
    Powers,
    Scale,
    Size,
    times,
)

Values = dict[bytes, Known | None]  # None: an input of a function that is left out
Settings = Mapping[str, Any]
MOST_RANK = 8
RULES = {**NUMBERS, **SHAPES, **PRODUCTS}
MOVED = b"""BitShift BitwiseAnd BitwiseOr BitwiseXor Concat Expand Gather Identity Reshape Slice Split Squeeze Transpose
    Unsqueeze""".split()  # operators whose results have the type of what they are given


# Operators that make no number below zero of others, and how many of their inputs have these numbers.
KEPT: Mapping[bytes, int | None] = {
    **dict.fromkeys(b"Add Concat Div Max Min Mul".split(), None),
    **dict.fromkeys(b"""Cast Expand Gather Identity ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice Squeeze
        Transpose Unsqueeze""".split(), 1),
}  # fmt: skip


class Work:
    """What was found in some nodes."""

    def __init__(self) -> None:
        self.products: dict[Powers, float] = {}  # multiplications and values made, by what they grow with
        self.largest, self.kind = 0.0, ""  # values of the largest result, and its operator
        self.held = 0.0  # values at once
        self.stays = 0.0  # bytes of `kept` that are there for all runs
        self.kept = 0.0  # bytes of values that do not depend on inputs: an engine makes them once, and keeps them

    def add(self, size: Size) -> None:
        """Count multiplications."""
        self.products[size.powers] = self.products.get(size.powers, 0.0) + abs(size.factor)

    def include(self, inner: Work, turns: Size) -> None:
        """Count what is done in each turn."""
        for powers, factor in inner.products.items():
            self.add(times(Size(factor, powers), turns))
        if inner.largest > self.largest:
            self.largest, self.kind = inner.largest, inner.kind

    def total(self, scale: Scale) -> float:
        """All multiplications."""
        return sum(scale.value(Size(factor, powers)) for powers, factor in self.products.items())


class _Memory:
    """What some nodes hold at once: values, and bytes of those that are made of constants alone."""

    def __init__(self, nodes: Any, around: Container[bytes]) -> None:
        self.last = {name: index for index, node in enumerate(nodes) for name in node.input if name not in around}
        self.taken: dict[bytes, tuple[float, bool]] = {}
        self.held = self.kept = self.stays = 0.0

    def stay(self, count: float) -> None:
        """Count bytes that nothing drops."""
        self.kept += count
        self.stays += count

    def take(self, name: bytes, count: float, *, fixed: bool) -> None:
        """Count a value."""
        self.taken[name] = count, fixed
        self.held += 0 if fixed else count
        self.kept += count if fixed else 0

    def free(self, node: Any, index: int, *, fixed: bool) -> None:
        """Drop what a node is the last to use; what is made of constants stays for all runs where inputs need it."""
        for name in set(node.input):
            if name in self.taken and self.taken[name][1] and not fixed:
                self.stays += self.taken.pop(name)[0]
            elif name in self.taken and self.last.get(name) == index:
                count, constant = self.taken.pop(name)
                self.held -= 0 if constant else count
                self.kept -= count if constant else 0


class Walk:
    """Follows the nodes of a graph, of its functions and of the bodies of its loops."""

    def __init__(self, functions: Mapping[tuple[bytes, bytes], Any], scale: Scale) -> None:
        self.functions, self.scale = functions, scale

    def run(self, nodes: Any, values: Values, outer: Settings | None = None, around: Mapping[bytes, Any] = {}) -> Work:
        """Add what nodes make to `values`; `outer` are the attributes of a function, `around` the nodes of a graph."""
        work, makers = Work(), dict(around)
        memory = _Memory(nodes, around)
        for index, node in enumerate(nodes):
            given = [_input(values, name) for name in node.input]
            inner = Work()
            made = self._node(node, given, values, outer or {}, makers, inner)
            fixed = all(known is None or known.constant for known in given)
            for name, known in zip(node.output, made.results, strict=False):
                if name:
                    width = given[0].width if node.op_type in MOVED and given and given[0] is not None else known.width
                    natural = known.natural or _is_natural(node.op_type, given, known, self.scale)
                    values[name] = known._replace(constant=fixed or known.constant, width=width, natural=natural)
                    makers[name] = node
                    if len(known.dims) > MOST_RANK:
                        raise Refused(f"a result of {_text(node.op_type)} has {len(known.dims)} sizes")
                    count = self.scale.value(known.size)
                    work.add(known.size)
                    memory.take(name, count * width if fixed else count, fixed=fixed)
                    if count > work.largest and not fixed:
                        work.largest, work.kind = count, _text(node.op_type)
            work.add(made.products)
            work.include(inner, ONE)
            work.held = max(work.held, memory.held + inner.held)
            work.kept = max(work.kept, memory.kept + inner.kept)
            memory.free(node, index, fixed=fixed)
            memory.stay(inner.stays)
        work.stays = memory.stays
        return work

    def _node(
        self, node: Any, given: list[Known | None], values: Values, outer: Settings, makers: Mapping[bytes, Any],
        inner: Work,
    ) -> Made:  # fmt: skip
        kind = _text(node.op_type)
        settings = _settings(node, outer)
        if kind in REPEATED:
            return REPEATED[kind](self, node, given, values, makers, inner)
        if (node.domain, node.op_type) in self.functions:
            return self._function(self.functions[node.domain, node.op_type], settings, given, inner)
        if kind == "Constant":
            return Made([_constant(settings)])
        outputs = [_text(name) for name in node.output]
        while outputs and not outputs[-1]:
            outputs.pop()

        def between(start: int, end: int) -> Known | None:
            maker = makers.get(node.input[end])
            if maker is None or maker.op_type != b"Add" or node.input[start] not in maker.input:
                return None
            other = [name for name in maker.input if name != node.input[start]]
            return values.get(other[0]) if len(other) == 1 else None

        made = RULES[kind](Call(kind, given, settings, self.scale, outputs, between))
        if len(made.results) < len(outputs):
            raise Refused(f"its {kind} has {len(outputs)} outputs")
        return made

    def _function(self, function: Any, settings: Settings, given: list[Known | None], inner: Work) -> Made:
        values: Values = dict.fromkeys(function.input) | dict(zip(function.input, given, strict=False))
        found = self.run(function.node, values, settings)
        inner.include(found, ONE)
        inner.held, inner.kept, inner.stays = found.held, found.kept, found.stays
        return Made([_value(values, name) for name in function.output])

    def loop(
        self, node: Any, given: list[Known | None], values: Values, makers: Mapping[bytes, Any], inner: Work
    ) -> Made:
        """Each turn may add rows to what is handed on, of which it reads nothing."""
        body = _body(node)
        handed, ports = [_value(values, name) for name in node.input[2:]], [port.name for port in body.input]
        fits = len(ports) == len(given) >= 2 and len(body.output) == len(given) - 1 and given[0] is not None
        if not fits or given[0] is None:
            raise Refused("it has a Loop of any number of turns, or with other values than its body")
        turns = given[0].each("a Loop")[0]
        inside = {**values, ports[0]: Known((), (turns._replace(exact=False),)), ports[1]: Known(())}
        inside.update(zip(ports[2:], handed, strict=True))
        found = self.run(body.node, inside, around=makers)
        uses = Counter(name for each in body.node for name in each.input)
        results = []
        for port, name, start in zip(ports[2:], (output.name for output in body.output[1:]), handed, strict=True):
            join = next((each for each in body.node if name in each.output), None)
            joins = join is not None and join.op_type == b"Concat" and uses[port] == 1
            if join is None or not joins or len(join.input) != 2 or join.input[0] != port or not start.dims:
                raise Refused("it has a Loop that hands on something else than rows behind the earlier ones")
            dims = list(_value(inside, name).dims)
            axis = next((int(item.i) for item in join.attribute if item.name == b"axis"), 0) % len(dims)
            grown = self.scale.plus(start.dims[axis], times(turns, _value(inside, join.input[1]).dims[axis]))
            dims[axis] = grown._replace(exact=False)
            results.append(Known(tuple(dims)))
            inner.add(times(results[-1].size, turns))  # copied in each turn
        inner.include(found, turns)
        inner.kept, inner.stays = found.kept, found.stays
        inner.held = found.held + sum(self.scale.value(known.size) for known in results)
        return Made(results)

    def scan(
        self, node: Any, given: list[Known | None], values: Values, makers: Mapping[bytes, Any], inner: Work
    ) -> Made:
        """Runs over the first axis of what it scans; its states keep their sizes."""
        body, settings = _body(node), _settings(node, {})
        handed = [_value(values, name) for name in node.input]
        states = len(handed) - sum(int(item.i) for name, item in settings.items() if name == "num_scan_inputs")
        fits = set(settings) == {"body", "num_scan_inputs"} and len(body.input) == len(handed)
        if not fits or not 0 <= states < len(handed) or not all(known.dims for known in handed[states:]):
            raise Refused("it has a Scan with other values than its body")
        turns = handed[states].dims[0]
        parts = [*handed[:states], *(Known(known.dims[1:]) for known in handed[states:])]
        inside = {**values, **{port.name: Known(known.dims) for port, known in zip(body.input, parts, strict=True)}}
        found = self.run(body.node, inside, around=makers)
        made = [_value(inside, output.name) for output in body.output]
        for before, after in zip(handed[:states], made[:states], strict=True):
            sizes = zip(before.dims, after.dims, strict=False)
            if len(before.dims) != len(after.dims) or any(
                self.scale.value(size) < self.scale.value(grown) for size, grown in sizes
            ):
                raise Refused("it has a Scan whose states grow")
        rows = [Known((turns, *known.dims)) for known in made[states:]]
        inner.include(found, turns)
        inner.held, inner.kept, inner.stays = found.held, found.kept, found.stays
        return Made([*handed[:states], *rows])


def _is_natural(kind: bytes, given: Sequence[Known | None], made: Known, scale: Scale) -> bool:
    """Whether no number of a result is below zero, nor so large that it wraps around in 32 bits."""
    largest = made.largest(scale)
    if largest is None or scale.value(largest) >= WRAPS:
        return False
    counted = made.numbers is not None and all(number.exact and number.factor >= 0 for number in made.numbers)
    return (
        counted
        or kind == b"Shape"
        or (kind in KEPT and all(known is not None and known.natural for known in given[: KEPT[kind]]))
    )


REPEATED: Mapping[str, Callable[..., Made]] = {"Loop": Walk.loop, "Scan": Walk.scan}


def _settings(node: Any, outer: Settings) -> dict[str, Any]:
    """Attributes by name, those that a function takes from its caller among them."""
    found = {}
    for item in node.attribute:
        if not item.ref_attr_name:
            found[_text(item.name)] = item
        elif (given := outer.get(_text(item.ref_attr_name))) is not None:
            found[_text(item.name)] = given
    return found


def _body(node: Any) -> Any:
    bodies = [item.g for item in node.attribute if item.HasField("g")]
    if len(bodies) != 1:
        raise Refused(f"its {_text(node.op_type)} has {len(bodies)} bodies")
    return bodies[0]


def _constant(settings: Settings) -> Known:
    found: Sequence[Any] = list(settings.items())
    if len(found) != 1:
        raise Refused("it has a Constant of several values")
    name, item = found[0]
    if name == "value":
        return constant(item.t)
    numbers: list[Any] = {"value_int": [item.i], "value_ints": list(item.ints)}.get(name, [])
    if name in ("value_int", "value_ints"):
        return Known((Size(len(numbers)),) if name == "value_ints" else (), tuple(map(Size, numbers)), constant=True)
    if name not in ("value_float", "value_floats"):
        raise Refused(f"it has a Constant with the attribute {name[:80]!r}")
    return Known((Size(len(item.floats)),) if name == "value_floats" else (), constant=True)


def _input(values: Values, name: bytes) -> Known | None:
    return values.get(name) if name in values or not name else _value(values, name)


def _value(values: Values, name: bytes) -> Known:
    found = values.get(name)
    if found is None:
        raise Refused(f"its value {_text(name)[:200]!r} is made by no node in front of its use")
    return found


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
