"""How each tensor of a checkpoint is stored in the files of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from gguf import GGMLQuantizationType as Type

from ....runtimes.engines.llamacpp.header import read_gguf
from .gguf_files import files
from .tensors import Tensor

if TYPE_CHECKING:
    from ...job import Job

BITS = {"F32": 32, "F16": 16, "BF16": 16}  # of what is no integer in blocks


def precision(job: Job, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """How each source tensor is stored in the files of a folder, by its name in the checkpoint."""
    for file in files(job):
        entries = read_gguf(folder / file.name).tensors
        stored: dict[str, list[Tensor]] = {}
        for tensor in file.tensors:
            stored.setdefault(tensor.sources[0], []).append(tensor)
        for name, tensors in stored.items():
            parts = {tensor.name: entries[tensor.name] for tensor in tensors}
            kind = Type(next(iter(parts.values())).kind)
            block = gguf.GGML_QUANT_SIZES[kind][0]
            row = {
                "bits": BITS.get(kind.name, gguf.GGML_QUANT_SIZES[kind][1] * 8 // block),
                "group_size": 0 if block == 1 else block,
                "symmetric": True,
                "reason": f"{kind.name} as {', '.join(parts)}",
                "parameters": job.checkpoint.tensors[name].size,
                "bytes": sum(entry.nbytes for entry in parts.values()),
            }
            yield name, row
