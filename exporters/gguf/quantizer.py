"""llama.cpp's own quantizer: any of its file types from a GGUF file, with importance and types for single tensors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from ...runtimes.files import disk_full_is_input
from ...runtimes.llamacpp.header import BLOCKS
from ...runtimes.llamacpp.library import MESSAGES, llama
from ...targets.errors import InputError, closest
from .imatrix import Energy
from .tensors import Floats

BUFFER_BYTES = 1 << 28  # of rows in memory at a time; llama.cpp's default is 8 GB


def quantize(
    source: Path,
    out: Path,
    number: int,
    *,
    energies: Mapping[str, Energy] | None = None,
    overrides: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> None:
    """Write `out` in the file type of this number (llama_ftype) from a GGUF file in f32, f16 or bf16.

    `overrides` gives the types of tensors by regular expressions of their names. Raises InputError where llama.cpp
    refuses, such as for a file type that needs importance.
    """
    library = llama()
    options = library.llama_model_quantize_default_params()
    options.ftype, options.nthread, options.max_buf_size = number, threads or os.cpu_count() or 1, BUFFER_BYTES
    means = {name: np.ascontiguousarray(energy.mean) for name, energy in (energies or {}).items()}  # kept alive here
    importance, types = _importance(library, means), _overrides(library, overrides or {})
    if importance is not None:
        options.imatrix = importance
    if types is not None:
        options.tt_overrides = types
    MESSAGES.clear()
    with disk_full_is_input(out.parent):
        code = library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(options))
    if code:
        reason = MESSAGES[-1][:300] if MESSAGES else "no reason given"
        raise InputError(f"llama.cpp cannot quantize {source.name} ({reason}); use another --precision")


def _importance(library: Any, means: Mapping[str, Floats]) -> Any:
    """An array that points to the means and ends with a nameless entry; None where there is nothing."""
    if not means:
        return None
    kind, pointer = library.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    entries = [kind(name.encode(), mean.ctypes.data_as(pointer), len(mean)) for name, mean in means.items()]
    return (kind * (len(entries) + 1))(*entries, kind(None, None, 0))


def _overrides(library: Any, overrides: Mapping[str, str]) -> Any:
    if not overrides:
        return None
    kind = library.llama_model_tensor_override
    entries = [kind(pattern.encode(), check_type(name)) for pattern, name in overrides.items()]
    return (kind * (len(entries) + 1))(*entries, kind(None, 0))


def check_type(name: str) -> int:
    """The number of a tensor type; InputError for an unknown one."""
    known = {kind.name.lower(): int(kind) for kind in GGMLQuantizationType if int(kind) in BLOCKS}
    if name.lower() not in known:
        raise InputError(f"unknown tensor type {name!r}; {closest(name.lower(), known)}")
    return known[name.lower()]
