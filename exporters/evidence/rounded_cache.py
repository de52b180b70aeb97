"""What a narrow KV cache stands for: keys and values through 8 or 16 bits in front of attention over a float cache.

Made from the graphs of a float twin alone, for 8 bits with the scales of calibration, so that it shares nothing with
how the bundle's own graph got its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...targets.errors import CheckFailed
from ..graphs.kv_cache import KvScales
from .nudging import DECODER

KEY, PAST_KEY = 1, 3  # inputs of attention; those of values are one further
KEY_SCALES = {"GroupQueryAttention": 12, "CachedAttentionInt8": 6}


def check_scales(scales: KvScales, folder: Path) -> None:
    """Raises CheckFailed where the decoder in a folder does not have the scales of each layer's keys and values."""
    for layer, node in _attention(ir.load(folder / f"{DECODER}.onnx")):
        stored = [_constant(value) for value in node.inputs[KEY_SCALES[node.op_type] :]]
        if len(stored) != 2 or not all(
            found is not None and np.array_equal(found, wanted[None, :, None])
            for found, wanted in zip(stored, scales[layer], strict=True)
        ):
            raise CheckFailed(
                f"the bundle's KV cache is not scaled as calibration found: layer {layer} has other scales; nothing "
                "was exported: report this with the checkpoint's config.json"
            )


def round_cache(folder: Path, scales: KvScales | None = None) -> None:
    """Make the float decoder in a folder round keys and values as an int8 cache of these scales, or a float16 one."""
    path = folder / f"{DECODER}.onnx"
    model = ir.load(path)
    for layer, node in _attention(model):
        for place in (KEY, KEY + 1):
            # Between an input [batch, seq, channels] of the node and the node.
            steps = None if scales is None else scales[layer][place - KEY]
            down, up = _to_half(node, place) if steps is None else _to_int8(model, node, place, steps)
            model.graph.insert_before(node, [down, up])
            node.replace_input_with(place, up.outputs[0])
    ir.save(model, path)


def _to_half(node: ir.Node, place: int) -> tuple[ir.Node, ir.Node]:
    down = ir.node("Cast", [node.inputs[place]], attributes={"to": int(ir.DataType.FLOAT16)})
    return down, ir.node("Cast", [down.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})


def _to_int8(model: ir.Model, node: ir.Node, place: int, steps: NDArray[np.float32]) -> tuple[ir.Node, ir.Node]:
    flat = steps.reshape(-1)
    name = f"{node.name}.{place}.steps"
    tensor = ir.tensor(flat, name=name)
    scale = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(flat.shape), const_value=tensor)
    model.graph.register_initializer(scale)
    to_int8 = {"axis": 2, "output_dtype": int(ir.DataType.INT8)}
    down = ir.node("QuantizeLinear", [node.inputs[place], scale], attributes=to_int8)
    return down, ir.node("DequantizeLinear", [down.outputs[0], scale], attributes={"axis": 2})


def _attention(model: ir.Model) -> Iterator[tuple[int, ir.Node]]:
    """The nodes that have a cache, with their layers."""
    for node in [*model.graph]:
        if node.op_type in KEY_SCALES:
            past = node.inputs[PAST_KEY]
            assert past is not None  # "past_key_values.3.key"
            yield int(str(past.name).split(".")[1]), node


def _constant(value: ir.Value | None) -> NDArray[np.float32] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else np.asarray(tensor.numpy(), np.float32)
