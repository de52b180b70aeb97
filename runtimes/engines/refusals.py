"""What ONNX Runtime says when it cannot load or run a graph, as an InputError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ...targets.errors import InputError

LONGEST = 300  # characters that are kept of a reason


@contextlib.contextmanager
def refusal_is_input(path: Path) -> Iterator[None]:
    """Turn the failure of a graph that runs into an InputError that names its file and the operator."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")):
            raise  # the library's own types have no base of their own
        reason = reason_of(error)
        step = "choose a smaller context or fewer pixels" if "allocate memory" in reason else "export the bundle again"
        raise InputError(f"{path} cannot be run ({reason}); {step}") from error


def reason_of(error: Exception) -> str:
    """The part of a message that says why: one line, without the library's codes in front."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.rpartition("Status Message: ")[2].rpartition("Exception during initialization: ")[2][:LONGEST]
