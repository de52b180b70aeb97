"""The exceptions of lensmith.

LensmithError           anything that lensmith itself reports
├── InputError          unusable input: one clear sentence, exit code 2
│   ├── MissingExtra    a feature needs packages that are not installed
│   └── ContextFull     a conversation is longer than the context
└── CheckFailed         a check ran and did not pass, exit code 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMED = 40  # names in a message: more than there are targets or types of GGUF


class LensmithError(Exception):
    """Base of all errors of lensmith."""

    exit_code = 1


class InputError(LensmithError):
    """Unusable input. The message names the thing, what was found, what was expected and the next step."""

    exit_code = 2


class MissingExtra(InputError):
    """A feature needs packages of an extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs packages that are not installed; run: pip install 'lensmith[{extra}]'")


class ContextFull(InputError):
    """A conversation is longer than the context of a model."""


class CheckFailed(LensmithError):
    """A check ran to its end and did not pass."""


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the closest known name, or all of them when few."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return f"known: {', '.join(names)}" if len(names) <= MOST_NAMED else ""
