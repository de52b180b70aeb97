"""What a chat template that nobody vouches for may use up: a sandbox with a budget of time and of work.

The syntax tree is rewritten so that each loop pass, macro call, output, concatenation and literal is charged to the
budget, and an operation that could make a much larger value than it is given is estimated before it runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_VALUE = 1 << 22  # characters and items of one value
MAX_WORK = 1 << 27  # characters and items made by one rendering, all together
_REMOVED = ("urlize", "xmlattr", "wordwrap", "pprint")  # filters no chat template needs, hard to bound


class _Budget:
    """What is left of the time and of the work of one rendering."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.work = MAX_WORK

    def spend(self, work: int) -> None:
        self.work -= work
        if self.work < 0:
            raise SecurityError(f"more than {MAX_WORK} characters of work")
        if time.monotonic() > self.deadline:
            raise SecurityError("more time than it may use")


_budget: ContextVar[_Budget | None] = ContextVar("lensmith_template_budget", default=None)


def _spend(work: int) -> None:
    if (budget := _budget.get()) is not None:
        budget.spend(work)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    token = _budget.set(_Budget(seconds))
    try:
        yield
    finally:
        _budget.reset(token)


def weighed(value: Any) -> Any:
    """Charge for `value`, its characters and items through nested containers, and refuse it when it is too large."""
    pending, weight = [value], 0
    while pending:
        item = pending.pop()
        weight += 1
        if isinstance(item, str | bytes | range):
            weight += len(item)
        elif isinstance(item, list | tuple | set | frozenset):
            weight += len(item)
            pending.extend(item if weight <= MAX_VALUE else ())
        elif isinstance(item, dict):
            weight += len(item)
            pending.extend([*item.keys(), *item.values()] if weight <= MAX_VALUE else ())
        elif isinstance(item, int):
            weight += item.bit_length() >> 3
        if weight > MAX_VALUE:
            raise SecurityError(f"a value of more than {MAX_VALUE} characters")
    _spend(weight)
    return value


def _expect(weight: int) -> None:
    if weight > MAX_VALUE:
        raise SecurityError(f"a value of more than {MAX_VALUE} characters")


def _weigh_format(pattern: str, values: Any) -> None:
    """Before formatting: a field may hold all values, padded to a width from the pattern or, with `*`, from a value."""
    widths = sum(int(number[:9]) for number in re.findall(r"\d+", pattern))
    if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):
        items = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
        widths += max((abs(item) for item in items if isinstance(item, int)), default=0) * len(pattern)
    fields = pattern.count("%") + pattern.count("{")
    _expect(len(pattern) + widths)
    weighed(values)
    _expect(fields * len(str(values)))


def _weigh_times(left: Any, right: Any) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | bytes | list | tuple) and isinstance(count, int):
            _expect(len(value) * count)
    if isinstance(left, int) and isinstance(right, int):
        _expect(left.bit_length() + right.bit_length())


def _weigh_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _expect(left.bit_length() * right)


def _weigh_sum(left: Any, right: Any) -> None:
    if hasattr(left, "__len__") and hasattr(right, "__len__"):
        _expect(len(left) + len(right))


def _weigh_join(separator: Any, items: Any) -> None:
    _expect(sum(map(len, map(str, items))) + len(str(separator)) * len(items))


def _weigh_replace(text: Any, old: Any, new: Any, *_: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    _expect(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _weigh_width(text: Any, width: Any = 80, *_: Any, **__: Any) -> None:
    _expect(int(width) + len(str(text)))


def _weigh_lines(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    lines = len(str(text).splitlines()) + 1 + str(text).count("\t")
    _expect(len(str(text)) + lines * (width if isinstance(width, int) else len(width)))


def _weigh_start(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum of something else than numbers")


def _refused(*_: Any, **__: Any) -> None:
    raise SecurityError("str.translate, which is not offered to templates")


_OPERATORS: dict[str, Callable[..., None]] = {
    "+": _weigh_sum, "*": _weigh_times, "**": _weigh_power,
    "%": lambda left, right: _weigh_format(left, right) if isinstance(left, str) else None,
}  # fmt: skip
_METHODS: dict[str, Callable[..., None]] = {
    "join": _weigh_join, "replace": _weigh_replace, "center": _weigh_width, "ljust": _weigh_width,
    "rjust": _weigh_width, "zfill": _weigh_width, "expandtabs": _weigh_lines, "translate": _refused,
    "format": lambda text, *args, **kwargs: _weigh_format(text, {**dict(enumerate(args)), **kwargs}),
    "format_map": lambda text, values: _weigh_format(text, dict(values)),
}  # fmt: skip
_FILTERS: dict[str, Callable[..., None]] = {
    "join": lambda items, d="", attribute=None: _weigh_join(d, items),
    "replace": _weigh_replace, "center": _weigh_width, "indent": _weigh_lines, "sum": _weigh_start,
    "format": lambda text, *args, **kwargs: _weigh_format(str(text), kwargs or args),
    "batch": lambda items, linecount, fill_with=None: _expect(linecount),
    "slice": lambda items, slices, fill_with=None: _expect(slices),
    "tojson": lambda value, ensure_ascii=False, indent=None, *_, **__: _check_indent(indent),
}  # fmt: skip


def _check_indent(indent: Any) -> None:
    if indent is not None and not (isinstance(indent, int) and indent <= 64):
        raise SecurityError("tojson with an indent that is not a number up to 64")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name`, estimated before it runs and charged after it."""
    estimate = _FILTERS.get(name)
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # copies Jinja's marks too
    def filtered(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if isinstance(given[skip], Iterator) and name in ("join", "list", "sum", "sort", "unique"):
            given[skip] = weighed(list(given[skip]))
        if estimate is not None:
            estimate(*given[skip:], **kwargs)
        return weighed(function(*given, **kwargs))

    return filtered


class BudgetedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with every operation charged to the budget that `limited` sets."""

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=weighed, **options)
        del self.globals["lipsum"]
        for name in _REMOVED:
            del self.filters[name]
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        self.filters["lensmith_spend"] = jinja2.pass_context(lambda context, work: _spend(work))
        self.filters["lensmith_weigh"] = jinja2.pass_context(lambda context, value: weighed(value))
        self.filters["lensmith_concat"] = jinja2.pass_context(lambda context, values: _concat(values))

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Offer `function` to templates, guarded."""
        self.filters[name] = _guarded(name, function)

    def charged(self, source: str) -> nodes.Template:
        """The syntax tree of `source`, with its charges."""
        tree: nodes.Template = _Guards(self).visit(self.parse(source))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _OPERATORS[operator](left, right)
        return weighed(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped by the sandbox
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if isinstance(owner, str) and name in _METHODS:
            args = tuple(weighed(list(arg)) if isinstance(arg, Iterator) else arg for arg in args)
            _METHODS[name](owner, *args, **kwargs)
        return weighed(super().call(__context, __obj, *args, **kwargs))


def _concat(values: list[Any]) -> str:
    texts = [str(weighed(value)) for value in values]
    _expect(sum(map(len, texts)))
    return weighed("".join(texts))  # type: ignore[no-any-return]


class _Guards(NodeTransformer):
    """Rewrites a syntax tree so that what Jinja compiles to bare Python is charged too."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def _filter(self, node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=self._environment)

    def _charge_body(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        work = 1 + sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        work += sum(len(const.value) for const in node.find_all(nodes.Const) if isinstance(const.value, str))
        constant = nodes.Const(work, lineno=node.lineno, environment=self._environment)
        charge = self._filter(constant, "lensmith_spend")
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno, environment=self._environment))
        return node  # type: ignore[no-any-return]

    visit_For = visit_Macro = visit_CallBlock = _charge_body

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno, environment=self._environment)
        return self._filter(values, "lensmith_concat")

    def visit_List(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or all(isinstance(item, nodes.Const) for item in node.items):
            return node  # type: ignore[no-any-return]
        return self._filter(node, "lensmith_weigh")

    visit_Tuple = visit_Dict = visit_List
