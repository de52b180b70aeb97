"""The least and the largest of every type of value in a manifest, and what lies beyond."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lensmith.runtimes.bundle import ranges
from lensmith.runtimes.bundle.input_sections import FrameVideos, Limits, PatchImages, PromptEntry
from lensmith.runtimes.bundle.manifest import GoldenEntry, OptionEntry, Sampling

THIRD = [0.5, 0.5]
# A type, values that it takes, and values that it does not.
EDGES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "text": (ranges.Text, ["", "a\nb\tü", "x" * 20_000], ["\x1b[0m", "a\r", "\x7f", "\x85", "x" * 20_001, 1]),
    "name": (ranges.Name, ["a", "x" * 1000], ["", "x" * 1001, "a\x00"]),
    "token": (ranges.Token, ["\x00", "x" * 1000], ["", "x" * 1001]),
    "hash": (ranges.Hash, ["0" * 64, "f" * 64], ["0" * 63, "0" * 65, "F" * 64, "g" * 64, "0" * 64 + "\n"]),
    "token id": (ranges.TokenId, [0, (1 << 31) - 1], [-1, 1 << 31, 1.5, True]),
    "size": (ranges.Size, [1, (1 << 31) - 1], [0, 1 << 31]),
    "count": (ranges.Count, [0, 1 << 50], [-1, (1 << 50) + 1]),
    "side": (ranges.Side, [1, 2048], [0, 2049]),
    "area": (ranges.Area, [1, (1 << 31) - 1], [0, 1 << 31]),
    "least area": (ranges.LeastArea, [1, 1 << 26], [0, (1 << 26) + 1]),
    "number": (ranges.Number, [-1e30, 0, 1e30], [-1.1e30, 1.1e30, "1"]),
    "factor": (ranges.Factor, [1.1e-9, 1 / 255, 1e9], [0, -1.0, 1e-9, 1.1e9]),
    "mean": (ranges.Mean, [[-1e6, 0, 1e6]], [THIRD, [*THIRD, 0.5, 0.5], [*THIRD, 1.1e6], [-1.1e6, *THIRD]]),
    "std": (ranges.Std, [[1e-6, 1, 1e6]], [THIRD, [*THIRD, 0.5, 0.5], [*THIRD, 0], [*THIRD, -1], [*THIRD, 1.1e6]]),
    "sides": (ranges.Sides, [[1, 2048]], [[1], [1, 1, 1], [0, 1], [1, 2049]]),
    "shape": (ranges.Shape, [[], ["n", 1] * 4], [["n"] * 9, [0], [""], [-1]]),
    "bits": (ranges.Bits, [1, 64], [0, 65]),
    "group": (ranges.GroupSize, [0, (1 << 31) - 1], [-1, 1 << 31]),
}


def takes(kind: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    kind, right, wrong = EDGES[name]
    assert [takes(kind, value) for value in right] == [True] * len(right)
    assert [takes(kind, value) for value in wrong] == [False] * len(wrong)


PATCHES = {"patch_size": 2, "temporal_patch_size": 2, "merge_size": 1, "mean": [0, 0, 0], "std": [1, 1, 1],
           "rescale_factor": 1}  # fmt: skip
FRAMES = {**PATCHES, "kind": "frames", "fps": 2, "min_frames": 1, "max_frames": 2, "min_pixels": 4, "max_pixels": 16,
          "max_tokens": 4}  # fmt: skip
PROMPT = {"template": "chat_template.jinja", "tokenizer": "tokenizer.json", "tokens": {}, "token_ids": {},
          "eos_token_ids": [0], "merge_size": 1}  # fmt: skip
OPTIONS = {"format": "onnx", "precision": "int4", "prefill_chunk": 1}
# A section, what it needs, a field, values that it takes, and values that it does not.
FIELDS: list[tuple[Any, dict[str, Any], str, list[Any], list[Any]]] = [
    (PatchImages, {**PATCHES, "kind": "patches"}, "temporal_patch_size", [1, 64], [0, 65]),
    (PatchImages, {**PATCHES, "kind": "patches"}, "merge_size", [1, 64], [0, 65]),
    (FrameVideos, FRAMES, "fps", [0.1, 10_000], [0, 10_001]),
    (FrameVideos, FRAMES, "min_frames", [1, 1 << 20], [0, (1 << 20) + 1]),
    (FrameVideos, FRAMES, "max_frames", [1, 1 << 20], [0, (1 << 20) + 1]),
    (Limits, {}, "context", [1, 1 << 24], [0, (1 << 24) + 1]),
    (PromptEntry, PROMPT, "merge_size", [1, 64], [0, 65]),
    (PromptEntry, PROMPT, "eos_token_ids", [[0], [1] * 1000], [[], [1] * 1001, [-1]]),
    (PromptEntry, PROMPT, "template", ["chat_template.jinja"], ["../chat_template.jinja", "other"]),
    (Sampling, {}, "temperature", [0, 1e6, None], [-0.1, 1.1e6]),
    (Sampling, {}, "top_k", [0, 1, None], [-1, 1 << 31]),
    (Sampling, {}, "top_p", [0.1, 1, None], [0, 1.1]),
    (Sampling, {}, "min_p", [0, 1, None], [-0.1, 1.1]),
    (Sampling, {}, "repetition_penalty", [0.1, 1e6, None], [0, -1, 1.1e6]),
    (OptionEntry, OPTIONS, "prefill_chunk", [1, 1 << 20], [0, (1 << 20) + 1]),
    (OptionEntry, OPTIONS, "format", ["onnx", "gguf", "tensorrt"], ["ONNX", "torch"]),
    (OptionEntry, OPTIONS, "kv_cache", ["float", "int8"], ["int4", None]),
    (GoldenEntry, {"recorded": True}, "steps", [1, 1 << 20, None], [0, (1 << 20) + 1]),
]


@pytest.mark.parametrize(("section", "needed", "field", "right", "wrong"), FIELDS)
def test_fields(section: Any, needed: dict[str, Any], field: str, right: list[Any], wrong: list[Any]) -> None:
    assert [takes(section, {**needed, field: value}) for value in right] == [True] * len(right)
    assert [takes(section, {**needed, field: value}) for value in wrong] == [False] * len(wrong)
