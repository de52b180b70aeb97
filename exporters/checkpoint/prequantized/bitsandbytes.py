"""bitsandbytes: 4 bits through a table of levels in blocks (nf4, fp4), and 8 bits with one scale for each row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ....targets.errors import InputError
from ..lazy_tensors import ComputedTensor, Floats
from ..safetensors_files import StoredTensor
from .modules import Module

STATE = "weight.quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of values with one scale
FOUR_BITS = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
             *(STATE + kind for kind in KINDS))  # fmt: skip
EIGHT_BITS = ("SCB", "weight_format")
PARTS = (*FOUR_BITS, *EIGHT_BITS)
PART_OF_127 = np.float32(7.874015718698502e-3)  # the library multiplies by it in place of dividing by 127
STORED = {"float32": ("F32", np.float32), "float16": ("F16", np.float16), "bfloat16": ("BF16", ml_dtypes.bfloat16)}


def bitsandbytes(module: Module) -> ComputedTensor:
    """The weight of a module, in the type that it had when it was quantized, as the library gives it."""
    if any(name in module.parts for name in EIGHT_BITS):
        return _eight_bits(module)
    state = _state(module)
    kind, stored = STORED[state["dtype"]]
    blocks = _Blocks(module, state)

    def compute(start: int, stop: int) -> Floats:
        columns = blocks.shape[1]
        return blocks.values(start * columns, stop * columns).astype(stored).astype(np.float32)

    return ComputedTensor(module.weight_name, blocks.shape, kind, tuple(module.parts.values()), compute)


def _eight_bits(module: Module) -> ComputedTensor:
    """LLM.int8(): value * scale of the row / 127. Columns of outliers are quantized like all others."""
    weight, scale = module.need("weight", rank=2, dtypes=("I8",)), module.need("SCB", dtypes=("F32", "F16", "BF16"))
    module.check(scale, weight.shape[0])
    layout = module.parts.get("weight_format")
    if layout is not None and layout.numpy(np.int64).any():
        raise module.refuse(f"{layout.name} is not 0, an order of bytes for one kind of GPU; save the model again with "
                            "bitsandbytes 0.45 or later")  # fmt: skip

    def compute(start: int, stop: int) -> Floats:
        values: Floats = weight.rows(start, stop)
        values *= scale.rows(start, stop)[:, None]
        values *= PART_OF_127
        return values

    return ComputedTensor(module.weight_name, weight.shape, "F32", tuple(module.parts.values()), compute)


def _state(module: Module) -> dict[str, Any]:
    """What the library keeps as JSON beside a weight of 4 bits, checked."""
    blob = module.need(*(STATE + kind for kind in KINDS), dtypes=("U8",))
    try:
        state = json.loads(blob.raw().tobytes())
        shape, blocksize = [int(n) for n in state["shape"]], int(state["blocksize"])
        whole = len(shape) == 2 and min(shape) > 0 and blocksize in BLOCKS and state["dtype"] in STORED
        nested = "nested_blocksize" not in state or int(state["nested_blocksize"]) > 0
        state["nested_offset"] = float(state.get("nested_offset") or 0)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{blob.name} does not describe a weight of 4 bits ({error}); copy the file again") from error
    if not whole or not nested:
        raise InputError(f"{blob.name} describes no matrix of 4 bits: {str(state)[:200]}; copy the file again")
    return {**state, "shape": (shape[0], shape[1]), "blocksize": blocksize}


@dataclass(frozen=True)
class _Blocks:
    """The parts of a weight of 4 bits, read by places in the flattened matrix."""

    module: Module
    state: dict[str, Any]

    def __post_init__(self) -> None:
        module, count = self.module, self.shape[0] * self.shape[1]
        if self.weight.nbytes != -(-count // 2):
            raise module.refuse(f"{self.weight.name} has {self.weight.nbytes} bytes; its quant_state implies "
                                f"{-(-count // 2)}")  # fmt: skip
        blocks = -(-count // self.state["blocksize"])
        module.check(module.need("weight.absmax"), blocks)
        module.check(module.need("weight.quant_map"), 16)
        if self.nested:
            module.check(module.need("weight.nested_absmax"), -(-blocks // int(self.state["nested_blocksize"])))
            module.check(module.need("weight.nested_quant_map"), 256)

    @property
    def shape(self) -> tuple[int, int]:
        shape: tuple[int, int] = self.state["shape"]
        return shape

    @property
    def weight(self) -> StoredTensor:
        return self.module.need("weight")

    @property
    def nested(self) -> bool:
        """Whether the scales of blocks are quantized, too."""
        return self.module.need("weight.absmax").dtype == "U8"

    def values(self, first: int, last: int) -> Floats:
        """Float32 of the places from one to another."""
        packed = self.weight.chunk(first // 2, -(-last // 2))
        pairs = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
        levels: Floats = self.module.need("weight.quant_map").numpy()[pairs[first % 2 :][: last - first]]
        size = self.state["blocksize"]
        scales = self._scales(first // size, -(-last // size))
        levels *= np.repeat(scales, size)[first % size :][: last - first]
        return levels

    def _scales(self, first: int, last: int) -> Floats:
        part = self.module.need("weight.absmax")
        if not self.nested:
            return np.asarray(part.rows(first, last))
        levels: Floats = self.module.need("weight.nested_quant_map").numpy()[part.rows(first, last, np.uint8)]
        places: NDArray[np.int64] = np.arange(first, last) // int(self.state["nested_blocksize"])
        levels *= self.module.need("weight.nested_absmax").numpy()[places]
        levels += np.float32(self.state["nested_offset"])
        return levels
