"""A manifest without a model behind it, as small as one may be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any


def port(*shape: int | str, dtype: str = "FLOAT") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


ENCODER: dict[str, Any] = {
    "file": "decoder.onnx",
    "inputs": {"pixel_values": port("patches", 24)},
    "outputs": {"image_features": port("image_tokens", 8)},
}
CONTENT: dict[str, Any] = {
    "family": "arlow",
    "source": {"name": "model", "files": {}, "license": "apache-2.0"},
    "target": "cpu-x86",
    "precision": {"w": {"bits": 4, "group_size": 128, "symmetric": True, "reason": "default"}},
    "graphs": {"vision_encoder": ENCODER},
    "image": {"patch_size": 2, "temporal_patch_size": 2, "merge_size": 1, "mean": [0.5, 0.5, 0.5],
              "std": [0.5, 0.5, 0.5], "rescale_factor": 0.5},
    "video": {"patch_size": 2, "temporal_patch_size": 2, "merge_size": 1, "mean": [0.5, 0.5, 0.5],
              "std": [0.5, 0.5, 0.5], "rescale_factor": 0.5, "strategy": "uniform", "max_frames": 8,
              "min_pixels": 4, "max_pixels": 16},
    "encoder": {"revision": "B", "rotary_pairs": "halves", "attention_rows": "heads", "patch_order": "raster"},
    "limits": {"min_pixels": 4, "max_pixels": 16, "max_image_tokens": 4, "context": 4},
    "generation": {},
    "evidence": {},
    "tools": {},
    "options": {"format": "onnx", "precision": "int4", "prefill_chunk": 4},
}  # fmt: skip


Path_ = tuple[str | int, ...]
DELETE = object()
NESTED: list[Any] = []
for _ in range(200):
    NESTED = [NESTED]
DAMAGES: dict[str, Any] = {
    "delete": DELETE, "null": None, "true": True, "text": "x", "empty text": "", "long text": "x" * 100_000,
    "odd text": "\u202eü\x1b[31m\x00\n[/b]", "minus one": -1, "zero": 0, "one": 1, "half": 0.5, "2^31": 1 << 31,
    "2^62": 1 << 62, "2^70": 1 << 70, "1e308": 1e308, "-1e308": -1e308, "empty list": [], "list": ["x"],
    "numbers": [1, -1, 1 << 62],
    "empty object": {}, "object": {"x": 1}, "nested": NESTED, "many": ["x"] * 100_000,
}  # fmt: skip


def fields(value: Any, at: Path_ = (), seen: set[str] | None = None) -> Iterator[Path_]:
    """Where every field is, those of layers and of ports once."""
    seen = set() if seen is None else seen
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        path = (*at, key)
        pattern = re.sub(r"\d+", "#", "/".join(map(str, path)))
        pattern = re.sub(r"(?<=/)(inputs|outputs|#)/[a-z_.#]+", r"\1/#", pattern)  # one port stands for all
        if at in (("precision",), ("source", "files"), ("source", "dropped"), ("files",)):
            pattern = f"{'/'.join(map(str, at))}/#"
        if pattern not in seen:
            seen.add(pattern)
            yield path
            yield from fields(item, path, seen)


def damaged(manifest: dict[str, Any], path: Path_, damage: Any) -> dict[str, Any]:
    """The manifest with another value at a place, or without it."""
    made = deepcopy(manifest)
    place: Any = made
    for key in path[:-1]:
        place = place[key]
    if damage is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = damage
    return made
