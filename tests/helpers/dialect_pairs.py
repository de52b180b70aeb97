"""Bundles of the tensorrt dialect in float32, which ONNX Runtime runs: its numbers are proven without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.formats.tensorrt.tensorrt_weights import FLOAT8, INT8
from lensmith.exporters.graphs.blocks import SourceTensor
from lensmith.runtimes.engines.contract import Floats

from tests.helpers import ladder
from tests.helpers.ladder import Pair, compile_pair
from tests.helpers.llava import write_checkpoint

FAMILIES = ("qwen3-vl-2b", "nemotron-4b", "vqwen3-4b")
TARGET, CONTEXT = "rtx-40", 2048  # tokens, which holds the longest conversation here


def tiny_bases(folder: Path) -> dict[str, Path]:
    """A tiny checkpoint of random weights of each family."""
    ladder.need_torch()
    made = {name: ladder.tiny(folder / name, name) for name in FAMILIES}
    return {**made, "vqwen3-4b": write_checkpoint(made["vqwen3-4b"], folder / "llava", layout="transformers 5")}


def dialect_pair(source: Path, out: Path, **options: Any) -> Pair:
    """A checkpoint compiled in the dialect, next to PyTorch."""
    return compile_pair(source, out, **{"format": "tensorrt", "target": TARGET, "context": CONTEXT, **options})


def float32_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export quantized weights for a target that computes in float32, and for which no engine is built."""
    ladder.change_target(monkeypatch, activations="float32")


def dequantize_weights(pair: Pair) -> None:
    """Put what the packed weights of the bundle stand for into PyTorch's model."""
    torch, parameters = pair.reference.torch, pair.reference.model.state_dict()
    rounded = 0
    for source in (source for graph in pair.job.graphs for source in graph.sources):
        if source.matrix is not None and source.matrix.scheme.quantized:
            weight = parameters[source.name]
            rows = unpack(source, weight.numpy().reshape(len(weight), -1))
            weight.copy_(torch.from_numpy(rows).reshape(weight.shape))
            rounded += 1
    assert rounded > 20


def unpack(source: SourceTensor, rows: Floats) -> Floats:
    """Rows of a matrix as DequantizeLinear reads them: signed, the first of two in the low bits of a byte."""
    values, scales = source.pack(rows)
    if scales.ndim == 1:  # the factors of rows
        step = (INT8 if values.dtype == np.int8 else FLOAT8).step
        return np.asarray(values.astype(np.float32) * step * scales.astype(np.float32)[:, None], np.float32)
    if values.dtype == np.uint8:
        low, high = (values << 4).view(np.int8) >> 4, values.view(np.int8) >> 4
        values = np.stack([low, high], axis=-1).reshape(rows.shape)
    groups = values.reshape(len(rows), scales.shape[1], -1)
    wide = scales.astype(np.float32)[:, :, None]
    return np.asarray((groups * wide).reshape(rows.shape), np.float32)
