"""The graph of a single operator as bytes of an ONNX file, to be timed without any package beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph_limits.onnx_messages import parse_model

OPSETS = {b"": 21, b"com.microsoft": 1, b"lensmith": 1}
IR_VERSION, FLOAT, INTEGER_ATTRIBUTE = 10, 1, 2
TYPES = {"float32": FLOAT, "uint8": 2, "int8": 3, "float16": 10}


@dataclass(frozen=True)
class Operator:
    """An operator with its attributes, its inputs that change, and its weights; an empty name leaves an input out."""

    name: str
    domain: str
    inputs: Mapping[str, tuple[int, ...]]  # shapes of those that are fed, in float32
    weights: Mapping[str, NDArray[Any] | None]
    attributes: Mapping[str, int]
    output_rank: int


def graph_of(operator: Operator) -> bytes:
    """The file; the output is called "y"."""
    model = parse_model(b"")
    model.ir_version = IR_VERSION
    for domain, version in OPSETS.items():
        model.opset_import.add(domain=domain, version=version)
    model.graph.name = b"one"
    for name, shape in operator.inputs.items():
        _port(model.graph.input, name, shape)
    names = [*operator.inputs, *(name if found is not None else "" for name, found in operator.weights.items())]
    node = model.graph.node.add(
        op_type=operator.name.encode(), domain=operator.domain.encode(), input=[name.encode() for name in names],
        output=[b"y"],
    )  # fmt: skip
    for key, value in operator.attributes.items():
        node.attribute.add(name=key.encode(), i=value, type=INTEGER_ATTRIBUTE)
    for name, weight in operator.weights.items():
        if weight is not None:
            raw = np.ascontiguousarray(weight).tobytes()
            model.graph.initializer.add(
                name=name.encode(), dims=weight.shape, data_type=TYPES[weight.dtype.name], raw_data=raw
            )
    _port(model.graph.output, "y", tuple(f"d{axis}" for axis in range(operator.output_rank)))
    data: bytes = model.SerializeToString()
    return data


def _port(ports: Any, name: str, shape: tuple[int | str, ...]) -> None:
    tensor = ports.add(name=name.encode()).type.tensor_type
    tensor.elem_type = FLOAT
    for size in shape:
        known = {"dim_value": size} if isinstance(size, int) else {"dim_param": size.encode()}
        tensor.shape.dim.add(**known)
