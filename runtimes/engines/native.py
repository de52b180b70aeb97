"""lensmith's own kernels: whether they were built, what this processor can run, and how they are turned off."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)
LIBRARY = Path(__file__).parent / "kernels" / "kernels.so"  # made by hatch_build.py where there is a C compiler
SWITCH = "LENSMITH_NATIVE"  # 0 in the environment: stock kernels only


def wanted_kernels(native: bool | None = None) -> tuple[str, ...]:
    """Names of the kernels that a session gets; empty: ONNX Runtime's own compute everything.

    `native` False turns them off; None, the default, leaves it to the environment variable LENSMITH_NATIVE.
    """
    if native is None:
        native = os.environ.get(SWITCH, "1") != "0"
    return available_kernels(LIBRARY) if native else ()


@functools.cache
def available_kernels(library: Path) -> tuple[str, ...]:
    """Names of the kernels in a library that this processor can run; none, and a warning, where it cannot be loaded."""
    if not library.is_file():
        return ()
    try:
        names, supported = _functions(ctypes.CDLL(str(library)))
    except (OSError, AttributeError) as error:
        log.warning(
            "%s cannot be loaded (%s); ONNX Runtime's own kernels are used: install lensmith again", library, error
        )
        return ()
    found, index = [], 0
    while name := names(index):
        if supported(index):
            found.append(name.decode())
        index += 1
    return tuple(found)


def _functions(loaded: ctypes.CDLL) -> tuple[ctypes._FuncPointer, ctypes._FuncPointer]:
    names, supported = loaded.lensmith_operator, loaded.lensmith_supported
    names.argtypes = supported.argtypes = [ctypes.c_size_t]
    names.restype, supported.restype = ctypes.c_char_p, ctypes.c_int
    return names, supported
