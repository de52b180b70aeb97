"""Arguments that a model wrote as bare text, as values of the types that a tool's JSON schema asks for."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

NONE = object()  # no value of a type
MOST_DEPTH = 16  # of references and alternatives in a schema
MOST_LITERAL = 1 << 16  # characters of what is read as Python writes it
_INTEGER = re.compile(r"[+-]?\d{1,4000}")
_NUMBER = re.compile(r"[+-]?(\d{1,4000}\.?\d*|\.\d+)([eE][+-]?\d+)?")


def typed(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """The value of an argument. Of several types that fit, a string comes last; what fits none stays a text.

    `root` is the schema of all parameters, whose `$defs` references mean. Chat templates write truth values and null
    as Python does, so `True` and `None` are read too.
    """
    options = list(_alternatives(schema, root))
    word = text.strip()
    choices = [choice for option in options for choice in _choices(option)]
    for choice in choices:
        if isinstance(choice, str) and choice in (text, word):
            return choice
    kinds = [kind for option in options for kind in _kinds(option)]
    if not kinds:
        value = as_json(word)
        return value if value is not NONE and (not choices or _among(value, choices)) else text
    found = (READERS[kind](word) for kind in kinds if kind in READERS)
    return next((value for value in found if value is not NONE), text)


def kinds_of(schema: Any, root: Mapping[str, Any]) -> list[str]:
    """The names of the types that a schema allows; none where it does not say."""
    return [kind for option in _alternatives(schema, root) for kind in _kinds(option)]


def as_strings(schema: Any, root: Mapping[str, Any]) -> list[str]:
    """The texts of which a schema asks for one; none where other values are fine."""
    choices = [choice for option in _alternatives(schema, root) for choice in _choices(option)]
    return choices if all(isinstance(choice, str) for choice in choices) else []


def as_json(text: str) -> Any:
    """The value of a JSON text, or NONE; line ends within strings are fine, NaN and infinity are not."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NONE


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _alternatives(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The schemas of which a value may fit any: references followed, anyOf, oneOf and allOf opened."""
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return
    target = schema.get("$ref")
    if isinstance(target, str):
        yield from _alternatives(_target(target, root), root, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(word)
        for branch in branches[:64] if isinstance(branches, list) else ():
            yield from _alternatives(branch, root, depth + 1)
    yield schema


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/name` means in the schema."""
    place: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        name = name.replace("~1", "/").replace("~0", "~")
        place = place.get(name) if isinstance(place, Mapping) else None
    return place


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type")
    return [each for each in (kind if isinstance(kind, list) else [kind]) if isinstance(each, str)]


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    listed = schema.get("enum")
    return [*(listed if isinstance(listed, list) else ()), *([schema["const"]] if "const" in schema else ())]


def _among(value: Any, choices: list[Any]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _integer(word: str) -> Any:
    if _INTEGER.fullmatch(word):
        return int(word)
    value = _number(word)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else NONE


def _number(word: str) -> Any:
    if _INTEGER.fullmatch(word):
        return int(word)
    value = float(word) if _NUMBER.fullmatch(word) else math.nan
    return value if math.isfinite(value) else NONE


def _boolean(word: str) -> Any:
    return {"true": True, "false": False}.get(word.lower(), NONE)


def _null(word: str) -> Any:
    return None if word.lower() in ("null", "none", "") else NONE


def _container(kind: type) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        value = as_json(word)
        if value is NONE and len(word) <= MOST_LITERAL:
            value = _as_python(word)
        return value if isinstance(value, kind) else NONE

    return read


def _as_python(word: str) -> Any:
    """A Python literal that JSON can say, or NONE."""
    try:
        value = ast.literal_eval(word)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return NONE
    return value


READERS: Mapping[str, Callable[[str], Any]] = {  # a string is what is left
    "integer": _integer, "number": _number, "boolean": _boolean, "null": _null,
    "object": _container(dict), "array": _container(list),
}  # fmt: skip
