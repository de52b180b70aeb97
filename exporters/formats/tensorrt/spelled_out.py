"""Attention for a TensorRT whose parser does not know its operator: by what the graph says that it means.

Parsers put a function's body in the place of an unknown operator, but not where inputs are left out.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ....targets.errors import MissingExtra

FUSED, SPELLED_OUT = "TRT_Attention", "CachedAttention"


def spell_out(path: Path) -> Path:
    """A copy of a graph beside it, with the same file of weights, whose attention any parser takes.

    Raises MissingExtra where the package onnx is not installed.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise MissingExtra("building for a TensorRT without its attention operator", "export") from error
    model = onnx.load(path, load_external_data=False)
    for function in (function for function in model.functions if function.name == FUSED):
        nodes = [node for node in model.graph.node if node.op_type == FUSED]
        given = [bool(name) for name in nodes[0].input] if nodes else []
        function.name = SPELLED_OUT
        for node in nodes:
            node.op_type = SPELLED_OUT
        for call in (function, *nodes):
            kept = [name for name, keep in zip(call.input, given, strict=True) if keep]
            del call.input[:]
            call.input.extend(kept)
    made = path.with_name(f"{path.stem}-spelled-out.onnx")
    onnx.save(model, made)
    return made
