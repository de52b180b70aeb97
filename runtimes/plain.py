"""Frozen dataclasses from the plain values that JSON gives."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def from_plain(kind: Any, data: Any, *, strict: bool = True) -> Any:
    """`data` from JSON as a value of the annotated type `kind`; ValueError where it is of another type.

    Fields with a default may be missing. Unknown fields are an error, unless not `strict`: then they are left out.
    """
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast(type, kind), data, strict=strict)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(data, list):
        return tuple(from_plain(arguments[0], item, strict=strict) for item in data)
    if origin is dict and isinstance(data, dict):
        return {key: from_plain(arguments[1], value, strict=strict) for key, value in data.items()}
    if isinstance(kind, types.UnionType):
        return None if data is None else from_plain(arguments[0], data, strict=strict)
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise ValueError(f"{data!r} is not a {getattr(kind, '__name__', kind)}")
    return data


def _record(kind: type, data: Any, *, strict: bool) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{data!r} is no record of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    if strict and set(data) - set(hints):
        raise ValueError(f"{kind.__name__} has no fields {sorted(set(data) - set(hints))}")
    given = {name: from_plain(hints[name], data[name], strict=strict) for name in hints if name in data}
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(str(error)) from error  # a field without a default is missing
