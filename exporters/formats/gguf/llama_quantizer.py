"""llama.cpp's own quantizer: any of its file types from a GGUF file, with importance and types for single tensors.

It is also asked beforehand, by its dry run over a file without values, what it will make of each tensor.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from ....runtimes.engines.llamacpp.header import BLOCKS
from ....runtimes.engines.llamacpp.library import MESSAGES, listening, llama
from ....runtimes.storage.files import disk_full_is_input
from ....targets.errors import InputError, closest
from .imatrix import Energy
from .tensors import Floats

BUFFER_BYTES = 1 << 28  # of rows in memory at a time; llama.cpp's default is 8 GB
# What its dry run says: a line for each tensor, with the new type where that is another one, and a warning.
CHANGED = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) .*-> .*\((\w+)\)", re.MULTILINE)
NEEDS_IMPORTANCE = "will require an imatrix"


@dataclass(frozen=True)
class Outlook:
    """What the quantizer will make of a file."""

    types: Mapping[str, Type]  # of the tensors that change theirs
    needs_importance: bool  # of columns, without which it refuses


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
    means = {name: np.ascontiguousarray(energy.mean) for name, energy in (energies or {}).items()}  # kept alive here
    importance, types = _importance(library, means), _overrides(library, overrides or {})
    with disk_full_is_input(out.parent):
        _run(source, out, ftype=number, nthread=threads or os.cpu_count() or 1, imatrix=importance, tt_overrides=types)


def foresee(outline: Path, number: int, *, columns: Mapping[str, int], overrides: Mapping[str, str]) -> Outlook:
    """What `quantize` will make of a file, of which the metadata and the list of tensors are enough.

    `columns` are those of the matrices whose importance will be known, which some choices of types depend on.
    """
    library = llama()
    means = {name: np.ones(size, np.float32) for name, size in columns.items()}
    settings = {"imatrix": _importance(library, means), "tt_overrides": _overrides(library, overrides)}
    with listening() as pieces:
        _run(outline, outline.with_suffix(".none"), ftype=number, nthread=1, dry_run=True, **settings)
    said = "".join(pieces)
    return Outlook({name: Type[kind.upper()] for name, kind in CHANGED.findall(said)}, NEEDS_IMPORTANCE in said)


def _run(source: Path, out: Path, **settings: Any) -> None:
    library = llama()
    options = library.llama_model_quantize_default_params()
    for name, value in {"max_buf_size": BUFFER_BYTES, **settings}.items():
        if value is not None:
            setattr(options, name, value)
    MESSAGES.clear()
    if library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(options)):
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
    known = {kind.name.lower(): int(kind) for kind in Type if int(kind) in BLOCKS}
    if name.lower() not in known:
        raise InputError(f"unknown tensor type {name!r}; {closest(name.lower(), known)}")
    return known[name.lower()]
