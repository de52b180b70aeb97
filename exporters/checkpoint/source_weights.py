"""The weights of a checkpoint as the rest of lensmith sees them: floats by name, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .lazy_tensors import LazyTensor
from .prequantized.declared import find_declared
from .prequantized.formats import check_declared, dequantized
from .safetensors_files import open_tensors


@dataclass(frozen=True)
class SourceWeights:
    """Tensors by name, the files they come from, and how they differ from what the files hold."""

    tensors: Mapping[str, LazyTensor]
    files: frozenset[Path]
    changes: Mapping[str, Any] = field(default_factory=dict)  # empty where the files hold the tensors themselves


def open_weights(folder: Path, config: Mapping[str, Any]) -> SourceWeights:
    """The weights of a folder with a configuration. The quantization is looked at before any file of weights."""
    declared = find_declared(folder, config)
    check_declared(folder, declared)
    stored = open_tensors(folder)
    files = frozenset(tensor.file for tensor in stored.values())
    tensors, unused = dequantized(folder, stored, declared)
    if declared is None:
        return SourceWeights(tensors, files)
    changes = {"method": declared.method, "declared_in": declared.place, "unused": list(unused)}
    return SourceWeights(tensors, files, {"quantization": changes})
