"""Folders of configurations without weights: what people have before they download a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensmith.exporters.synth.making import ARCHITECTURES, _write_small_files, small_files

NAMES = tuple(ARCHITECTURES)


def outline(name: str, folder: Path, *, tokenizer: bool = False) -> tuple[Path, Mapping[str, tuple[int, ...]]]:
    """The configurations of an architecture at full size, and the shapes of its published tensors by name."""
    architecture = ARCHITECTURES[name]
    files: dict[str, dict[str, Any]] = small_files(architecture, tiny=False)
    folder.mkdir()
    _write_small_files(folder, files, architecture)
    if not tokenizer:
        (folder / "tokenizer.json").unlink(missing_ok=True)
    return folder, {tensor.name: tensor.shape for tensor in architecture.tensors(files)}
