"""Conditions on figures, such as "decode_tps<10 or accuracy_drop>1", read without running anything of them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

from ...targets.errors import CheckFailed, InputError, closest

QUESTIONS = "--tasks"
BESIDE = "a reference beside it, as --against gives"
FIGURES = {  # each with what is needed for it
    "size_mb": "", "load_ms": "", "image_ms": "", "vision_ms": "", "prefill_ms": "", "first_token_ms": "",
    "decode_tps": "a bundle that answers", "memory_mb": "", "accuracy": QUESTIONS, "accuracy_drop": QUESTIONS,
    "kl": BESIDE, "top1": BESIDE, "feature_error": f"an encoder, and {BESIDE}",
}  # fmt: skip
OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}  # fmt: skip
MOST_SIGNS, MOST = 500, 1e300  # of a condition, whose depth Python's own limit bounds; of a number
EXAMPLE = 'expected comparisons of figures with numbers, such as "decode_tps<10 or accuracy_drop>1"'


@dataclass(frozen=True)
class Gate:
    """A condition that no bundle may meet."""

    text: str
    tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> Gate:
        """InputError for anything but comparisons of known figures and numbers, joined by and, or, not."""
        try:
            tree = ast.parse(text[: MOST_SIGNS + 1].strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InputError(f"the condition {text[:80]!r} cannot be read; {EXAMPLE}") from None
        if len(text) > MOST_SIGNS:
            raise InputError(f"the condition has {len(text)} signs, more than {MOST_SIGNS}; {EXAMPLE}")
        _check_truth(text, tree)
        return cls(text.strip(), tree)

    @property
    def names(self) -> list[str]:
        """The figures that it asks for."""
        return sorted({node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)})

    def require(self, *, tasks: bool) -> None:
        """InputError for a condition on figures of questions where there are none, before anything is measured."""
        for name in self.names:
            if FIGURES[name] == QUESTIONS and not tasks:
                raise InputError(f"the condition {self.text!r} asks for {name}, which needs {QUESTIONS}: a file of "
                                 "questions with answers")  # fmt: skip

    def check(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """CheckFailed where it is true of an entrant, by name, or cannot be told, since a figure is not a number.

        InputError where a figure was not measured.
        """
        for who, found in figures.items():
            for name in self.names:
                if name not in found:
                    need = f"; it needs {FIGURES[name]}" if FIGURES[name] else ""
                    raise InputError(f"the condition {self.text!r} asks for {name}, which {who} has not{need}")
                if isnan(found[name]):  # which no comparison is true of
                    raise CheckFailed(f"--fail-if {self.text!r} asks for {name}, which is not a number of {who}")
        failed = [who for who, found in figures.items() if _value(self.tree, found)]
        if failed:
            said = "; ".join(f"{who} ({self._shown(figures[who])})" for who in failed)
            raise CheckFailed(f"--fail-if {self.text!r} is true of {said}")

    def _shown(self, found: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {found[name]:.4g}" for name in self.names)


def _check_truth(text: str, node: ast.AST) -> None:
    """A condition is made of comparisons."""
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            _check_truth(text, part)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_truth(text, node.operand)
    elif isinstance(node, ast.Compare) and all(type(op) in OPERATORS for op in node.ops):
        for part in (node.left, *node.comparators):
            _check_number(text, part)
    else:
        raise InputError(f"the condition {text[:80]!r} has {ast.unparse(node)[:40]!r}; {EXAMPLE}")


def _check_number(text: str, node: ast.AST) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        _check_number(text, node.left)
        _check_number(text, node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check_number(text, node.operand)
    elif isinstance(node, ast.Name):
        if node.id not in FIGURES:
            raise InputError(f"the condition {text[:80]!r} has no figure {node.id[:40]!r}; {closest(node.id, FIGURES)}"
                             f" (all: {', '.join(FIGURES)})")  # fmt: skip
    elif not (isinstance(node, ast.Constant) and _is_number(node.value)):
        raise InputError(f"the condition {text[:80]!r} has {ast.unparse(node)[:40]!r}; {EXAMPLE}")


def _is_number(value: object) -> bool:
    """Whether a constant is a number that floats hold; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _value(node: ast.AST, found: Mapping[str, float]) -> Any:
    """The value of a checked expression; a division by nothing is not a number, which no comparison takes."""
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, found) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, found) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _value(part, found)
        case ast.UnaryOp(operand=part):
            return -_value(part, found)
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, found) for part in (left, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(OPERATORS[type(op)](first, second) for op, first, second in pairs)
        case ast.BinOp(left=left, op=op, right=right):
            first, second = float(_value(left, found)), float(_value(right, found))
            return float("nan") if second == 0 and isinstance(op, ast.Div) else OPERATORS[type(op)](first, second)
        case ast.Name(id=name):
            return found[name]
        case ast.Constant(value=value):
            return value
    raise AssertionError(ast.dump(node))
