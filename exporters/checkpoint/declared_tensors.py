"""Tensors of a checkpoint whose weights are not here: names, shapes and types as its configuration implies them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...targets.errors import InputError
from ..graphs.blocks import SourceTensor
from ..graphs.graph_files import Graph
from ..spec import Spec
from ..tower_specs import Tower
from .folder import Checkpoint
from .lazy_tensors import DTYPES, LazyTensor

TYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}  # of config.json
USUAL = "bfloat16"  # of checkpoints that do not say it
PATCHES = ("patch_embed.proj.weight", "patch_embedding.weight")  # ends of names of what cuts an image into patches


@dataclass(frozen=True)
class DeclaredTensor(LazyTensor):
    """A tensor without values, which plans have no need of."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    folder: Path

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize

    def renamed(self, name: str) -> DeclaredTensor:
        return replace(self, name=name)

    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        raise InputError(f"{self.folder} has no weights, which plans alone can do without; download the whole model")

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        return self.rows(0, 0, dtype)


def declared(checkpoint: Checkpoint, graphs: Iterable[Graph], spec: Spec) -> Checkpoint:
    """The checkpoint with all tensors that its graphs need."""
    kind = _type(checkpoint.config)
    tensors = {
        source.name: DeclaredTensor(source.name, shape, kind, checkpoint.path)
        for graph in graphs
        for source, shape in _shapes(graph, spec.vision)
    }
    return replace(checkpoint, tensors=MappingProxyType(dict(sorted(tensors.items()))))


def _type(config: dict[str, Any]) -> str:
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    named = (place.get(key) for place in places for key in ("dtype", "torch_dtype"))
    return TYPE_NAMES.get(str(next(filter(None, named), USUAL)), TYPE_NAMES[USUAL])


def _shapes(graph: Graph, vision: Tower | None) -> Iterator[tuple[SourceTensor, tuple[int, ...]]]:
    for source in graph.sources:
        if source.matrix is None:
            shape = source.parameters[0].shape
            assert shape is not None
            yield source, tuple(shape.numpy())
        elif source.name.endswith(PATCHES) and vision is not None:
            yield source, (source.matrix.rows, *vision.patch_shape)
        else:
            yield source, (source.matrix.rows, source.matrix.columns)
