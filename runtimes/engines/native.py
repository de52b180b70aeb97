"""lensmith's own kernels: whether they were built, what this processor can run, and how they are turned off."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ...targets.errors import InputError

log = logging.getLogger(__name__)
ENDINGS = {"win32": "dll", "darwin": "dylib"}  # of shared libraries; elsewhere so
LIBRARY = Path(__file__).parent / "kernels" / f"kernels.{ENDINGS.get(sys.platform, 'so')}"  # hatch_build.py makes it
SWITCH = "LENSMITH_NATIVE"  # in the environment; 0: stock kernels only, avx2 and the like: this instruction set


def wanted_kernels(native: bool | None = None) -> tuple[str, ...]:
    """Names of the kernels that a session gets; empty: ONNX Runtime's own compute everything.

    `native` False turns them off; None, the default, leaves it to the environment variable LENSMITH_NATIVE. Raises
    InputError where that names an instruction set that this processor, or the library, lacks.
    """
    return available_kernels(LIBRARY) if wanted_instructions(native) else ()


def wanted_instructions(native: bool | None = None) -> str | None:
    """The instruction set that kernels use in this process from now on; None: ONNX Runtime's own compute everything."""
    switch = os.environ.get(SWITCH) or "1"
    if native is False or (native is None and switch == "0"):
        return None
    name = None if switch in ("0", "1") else switch
    library = _load(LIBRARY)
    chosen: bytes | None = library.lensmith_choose(name and name.encode()) if library else None
    if name and not chosen:
        raise InputError(f"{SWITCH} is {name!r}, {_lacking(library)}; leave it out for the quickest, or set it to 0 "
                         "for ONNX Runtime's own kernels")  # fmt: skip
    return chosen.decode() if chosen else None


def available_kernels(library: Path) -> tuple[str, ...]:
    """Names of the kernels in a library; none, and a warning, where it cannot be loaded."""
    loaded = _load(library)
    return tuple(_names(loaded.lensmith_operator)) if loaded else ()


def _lacking(library: ctypes.CDLL | None) -> str:
    if library is None:
        return "but lensmith's own kernels are not installed here"
    return f"which this processor lacks; lensmith knows {', '.join(_names(library.lensmith_instruction_set))}"


def _names(function: Callable[[int], bytes | None]) -> Iterator[str]:
    index = 0
    while name := function(index):
        yield name.decode()
        index += 1


@functools.cache
def _load(library: Path) -> ctypes.CDLL | None:
    if not library.is_file():
        return None
    try:
        loaded = ctypes.CDLL(str(library))
        for name in ("lensmith_operator", "lensmith_instruction_set"):
            getattr(loaded, name).argtypes, getattr(loaded, name).restype = [ctypes.c_size_t], ctypes.c_char_p
        loaded.lensmith_choose.argtypes, loaded.lensmith_choose.restype = [ctypes.c_char_p], ctypes.c_char_p
    except (OSError, AttributeError) as error:
        log.warning(
            "%s cannot be loaded (%s); ONNX Runtime's own kernels are used: install lensmith again", library, error
        )
        return None
    return loaded
