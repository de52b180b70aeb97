"""A graph file as messages that can be changed before it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...graph_limits.onnx_messages import parse_model

FLOAT, INT64, END = 1, 7, (1 << 63) - 1  # elements of tensors, and the end of every axis


def editable(path: Path) -> Any:
    """The model in a file. Its data files are named as they are called where links lead, beside the file itself."""
    model = parse_model(path.read_bytes())
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == b"location":
                entry.value = (path.parent / entry.value.decode()).resolve().name.encode()
    return model


def add_port(ports: Any, name: bytes, kind: int, shape: list[int | str]) -> None:
    """One more input or output of a graph."""
    tensor = ports.add(name=name).type.tensor_type
    tensor.elem_type = kind
    for size in shape:
        known = {"dim_value": size} if isinstance(size, int) else {"dim_param": size.encode()}
        tensor.shape.dim.add(**known)


def add_whole(graph: Any, name: bytes, value: int) -> bytes:
    """One more constant int64 [1]; its name."""
    graph.initializer.add(name=name, data_type=INT64, dims=[1], int64_data=[value])
    return name
