"""Random checkpoints of an architecture's full widths with a few layers, which take a fraction of the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lensmith.exporters.synth.making import ARCHITECTURES, _write_small_files, small_files
from lensmith.exporters.synth.synth_weights import write_checkpoint

LAYERS = ("num_hidden_layers", "depth", "max_window_layers")  # keys of a configuration that count them
TYPES = "layer_types"  # one for each layer; with four of Qwen3.5 all kinds are there
TAPS = "deepstack_visual_indexes"


def shallow(name: str, folder: Path, layers: int) -> Path:
    """A checkpoint with so many layers in each of its parts, or fewer where it has fewer."""
    architecture = ARCHITECTURES[name]
    files = small_files(architecture, tiny=False)
    files[architecture.config] = cut(files[architecture.config], layers)
    folder.mkdir(parents=True)
    _write_small_files(folder, files, architecture)
    write_checkpoint(folder / architecture.model, list(architecture.tensors(files)), 0, lambda *_: None)
    return folder


def cut(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """A configuration with fewer layers; taps of the vision encoder move to its first ones."""
    made = {}
    for key, value in config.items():
        if isinstance(value, dict):
            value = cut(value, layers)
        elif key in LAYERS:
            value = min(value, layers)
        elif key == TYPES:
            value = value[:layers]
        elif key == TAPS:
            value = [min(index, layers - 1) for index in range(len(value))]
        made[key] = value
    return made
