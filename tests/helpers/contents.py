"""Contents of manifests for tests of what reads them, with as little in them as a manifest must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lensmith.runtimes.bundle.checked_manifest import inputs_of, typed
from lensmith.runtimes.bundle.manifest import InputSections, Manifest

STORED = {"bits": 32, "group_size": 0, "symmetric": True, "reason": "a test"}


def content(
    graphs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """A manifest's content; what is left out of a graph, a tensor or the options is made up."""
    graphs = {"decoder": {}} if graphs is None else graphs
    return {
        "format_version": 1,
        "family": "test",
        "source": {"name": "test", "files": {}, "license": None},
        "target": "test",
        "precision": {name: {**STORED, **entry} for name, entry in (precision or {}).items()},
        "graphs": {name: {"file": f"{name}.onnx", "inputs": {}, "outputs": {}, **graphs[name]} for name in graphs},
        "image": {"kind": "none"},
        "limits": {"context": 1024},
        "generation": {},
        "evidence": {},
        "tools": {},
        "options": {"format": "onnx", "precision": "int4", "prefill_chunk": 64, **(options or {})},
        "files": {},
        **sections,
    }


def manifest(*given: Any, **sections: Any) -> Manifest:
    """The record of such a content."""
    return typed(content(*given, **sections))


def inputs(**sections: Any) -> InputSections:
    """The record of the sections that say what a bundle takes."""
    return inputs_of({"image": {"kind": "none"}, "limits": {"context": 1024}, **sections})
