"""The error for a value of a configuration that is not supported."""

from __future__ import annotations

from ..targets.errors import InputError


def require(ok: bool, key: str, found: object, expected: str) -> None:
    """InputError that names a config value, unless it is as expected."""
    if not ok:
        raise InputError(f"config value {key} is {found}; expected {expected}")
