"""What a chat template that nobody vouches for may use up: a sandbox with a budget of time and of work.

The syntax tree is rewritten so that each loop pass, macro call, output, concatenation and literal is charged to the
budget, and an operation that could make a much larger value than it is given is estimated before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .template_costs import (
    ALLOWED,
    FILTERS,
    METHODS,
    OPERATORS,
    expect,
    spend,
    weighed,
)

_REMOVED = ("urlize", "xmlattr", "wordwrap", "pprint", "striptags")  # filters no chat template needs, hard to bound


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name`, estimated before it runs and charged after it."""
    estimate = FILTERS.get(name)
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


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test such as `in`, which filters call for each item."""

    @wraps(function)
    def tested(*args: Any, **kwargs: Any) -> Any:
        spend(1)
        return function(*args, **kwargs)

    return tested


class BudgetedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with every operation charged to the budget that `limited` sets."""

    intercepted_binops = frozenset(OPERATORS)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=weighed, **options)
        del self.globals["lipsum"]
        for name in _REMOVED:
            del self.filters[name]
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _charged(test) for name, test in tests.items()}
        self.filters["lensmith_spend"] = jinja2.pass_context(lambda context, work: spend(work))
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
        OPERATORS[operator](left, right)
        return weighed(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped by the sandbox
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        kind = next((kind for kind in ALLOWED if isinstance(owner, kind)), None)
        if isinstance(owner, type) or (kind is not None and name not in ALLOWED[kind]):
            raise SecurityError(f"the method {name!r}, which is not offered to templates")
        if kind is str and name in METHODS:
            args = tuple(weighed(list(arg)) if isinstance(arg, Iterator) else arg for arg in args)
            METHODS[name](owner, *args, **kwargs)
        return weighed(super().call(__context, __obj, *args, **kwargs))


def _concat(values: list[Any]) -> str:
    texts = [str(weighed(value)) for value in values]
    expect(sum(map(len, texts)))
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
