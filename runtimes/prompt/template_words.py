"""What a chat template reads: its variables, and the keys that it looks up in messages and in their parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jinja2
from jinja2 import meta, nodes


@dataclass(frozen=True)
class TemplateWords:
    """Names that a template reads anywhere, also in branches and macros that a conversation does not reach."""

    variables: frozenset[str]
    keys: frozenset[str]


def template_words(environment: jinja2.Environment, source: str) -> TemplateWords:
    """Read the words off the syntax tree of `source`."""
    tree = environment.parse(source)
    # Jinja also lists names that every path sets before it reads them, when a branch or a loop does so.
    undeclared = meta.find_undeclared_variables(tree) & set(_open_names(tree.body, set()))
    return TemplateWords(frozenset(undeclared - set(environment.globals) - {"messages"}), frozenset(_keys(tree)))


def _keys(tree: nodes.Template) -> Iterator[str]:
    """`item.key`, `item['key']`, `item.get('key')` and `'key' in item`."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Compare)):
        place: nodes.Node | None = None
        if isinstance(node, nodes.Getattr):
            yield node.attr
        elif isinstance(node, nodes.Getitem):
            place = node.arg
        elif isinstance(node, nodes.Call):
            place = next(iter(node.args), None)
        elif isinstance(node, nodes.Compare) and node.ops[0].op in ("in", "notin"):
            place = node.expr
        if isinstance(place, nodes.Const) and isinstance(place.value, str):
            yield place.value


def _open_names(body: Iterable[nodes.Node], known: set[str]) -> Iterator[str]:
    """Names that are read where nothing in front has set them for certain; adds those that `body` sets to `known`."""
    for node in body:
        if isinstance(node, nodes.Assign | nodes.AssignBlock):
            yield from _open_names(node.iter_child_nodes(exclude=("target",)), known)
            known |= _stored(node.target)
        elif isinstance(node, nodes.If):
            yield from _of_branches(node, known)
        elif isinstance(node, nodes.For):
            yield from _open_names([node.iter], known)
            inside = known | _stored(node.target) | {"loop"}
            yield from _open_names([*([node.test] if node.test else []), *node.body], set(inside))
            yield from _open_names(node.else_, set(known))
        elif isinstance(node, nodes.Name):
            if node.ctx == "load" and node.name not in known:
                yield node.name
        else:  # what a macro, a block or the like sets stays inside
            known |= {node.name} if isinstance(node, nodes.Macro) else set()
            given = {
                child.name
                for child in node.iter_child_nodes()
                if isinstance(child, nodes.Name) and child.ctx == "param"
            }
            scope = known if isinstance(node, nodes.Output | nodes.Expr) else known | given | {"caller"}
            yield from _open_names(node.iter_child_nodes(), scope)


def _of_branches(node: nodes.If, known: set[str]) -> Iterator[str]:
    """Those of an `if`; afterwards is known what all branches set."""
    yield from _open_names([node.test, *(branch.test for branch in node.elif_)], known)
    ends = []
    for branch in (node.body, *(branch.body for branch in node.elif_), node.else_):
        ends.append(set(known))
        yield from _open_names(branch, ends[-1])
    known |= set.intersection(*ends)


def _stored(target: nodes.Node) -> set[str]:
    """The names that an assignment to `target` sets."""
    return {name.name for name in (target, *target.find_all(nodes.Name)) if isinstance(name, nodes.Name)}
