"""compressed-tensors, the format of llm-compressor: packed integers, plain integers, or floats of 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....targets.errors import InputError
from ...storage.packing import Bytes
from ..lazy_tensors import ComputedTensor, Floats
from ..safetensors_files import StoredTensor
from .integers import (
    Integers,
    IntegerTensor,
    checked_order,
    integer_tensor,
    unpack_words,
    words_for,
)
from .modules import Module
from .scaled_floats import FLOATS8, scaled_floats

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
BITS = (2, 3, 4, 5, 6, 7, 8)


def check_settings(settings: Mapping[str, Any], place: str) -> None:
    """InputError for formats and further changes of weights that are not supported."""
    named = [settings.get("format"), *(group.get("format") for group in _groups(settings))]
    unknown = next((name for name in named if name and name not in FORMATS), None)
    if unknown is not None:
        raise InputError(f"{place} names the compressed-tensors format {unknown!r}, which lensmith does not read; "
                         f"expected {', '.join(FORMATS)}: export the checkpoint of floats it was made of")  # fmt: skip
    sparsity = settings.get("sparsity_config") or {"format": "dense"}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise InputError(f"{place} says that zeros are left out (sparsity_config), which lensmith does not read; "
                         "save the model without sparse compression")  # fmt: skip
    if settings.get("transform_config"):
        raise InputError(f"{place} has a transform_config: inputs are rotated while the model runs, which lensmith "
                         "does not do; export the checkpoint of floats it was made of")  # fmt: skip


def compressed_tensors(module: Module) -> ComputedTensor:
    """The weight of a module."""
    if "weight_global_scale" in module.parts:
        raise module.refuse("weights of 4-bit floats (NVFP4) are not supported; export the checkpoint of floats")
    if "weight_packed" in module.parts or "weight" not in module.parts:
        return _packed(module)
    weight = module.need("weight")
    if weight.dtype == "I8":
        return _plain(module, weight)
    if weight.dtype not in FLOATS8:
        raise module.refuse(f"{weight.name} is {weight.dtype} beside a scale: it was not compressed when it was saved; "
                            "save the model again with save_compressed=True")  # fmt: skip
    groups = [group.get("weights") for group in _groups(module.settings)]
    blocks = [found.get("block_structure") for found in groups if isinstance(found, dict)]
    same = blocks and all(block == blocks[0] for block in blocks)
    settings = {**module.settings, **({"block_structure": blocks[0]} if same else {})}
    return scaled_floats(Module(module.name, module.parts, settings))


def _groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of modules that are stored alike."""
    found = settings.get("config_groups")
    return [group for group in found.values() if isinstance(group, dict)] if isinstance(found, dict) else []


def _packed(module: Module) -> IntegerTensor:
    """Integers of 2 to 8 bits along the inputs in words, zero points along the outputs, all around 2^(bits - 1)."""
    packed, shape = module.need("weight_packed", rank=2, dtypes=("I32",)), module.need("weight_shape")
    if shape.size != 2:
        raise module.refuse(f"{shape.name} has {shape.size} numbers, expected the rows and columns of a matrix")
    rows, columns = (int(n) for n in shape.numpy(np.int64).reshape(-1))
    bits = next((bits for bits in BITS if (rows, words_for(columns, bits)) == packed.shape), None)
    if bits is None:
        raise module.refuse(f"{packed.name} of shape {list(packed.shape)} holds no {rows} x {columns} integers")
    scales, groups = _scales(module, rows, columns)
    zeros = module.parts.get("weight_zero_point")
    if zeros is not None:
        module.need("weight_zero_point", dtypes=("I32",))
        module.check(zeros, words_for(rows, bits), groups)

    def points(start: int, stop: int) -> Bytes:
        assert zeros is not None
        return np.ascontiguousarray(unpack_words(zeros.numpy(np.int32).T, bits, rows)[:, start:stop].T)

    def values(start: int, stop: int) -> Bytes:
        return unpack_words(packed.rows(start, stop, np.int32), bits, columns)

    order = checked_order(module, "weight_g_idx", columns, groups)
    made = Integers(bits, columns, groups, values, scales, None if zeros is None else points, order)
    return integer_tensor(module, rows, made)


def _plain(module: Module, weight: StoredTensor) -> IntegerTensor:
    """Signed integers of 8 bits, one in a byte."""
    module.need("weight", rank=2)
    rows, columns = weight.shape
    scales, groups = _scales(module, rows, columns)
    zeros = module.parts.get("weight_zero_point")
    if zeros is not None:
        module.need("weight_zero_point", dtypes=("I8",))
        if zeros.size not in (1, rows * groups):
            raise module.refuse(f"{zeros.name} has shape {list(zeros.shape)}, expected a number for each of {groups} "
                                f"groups in {rows} rows")  # fmt: skip

    def points(start: int, stop: int) -> Bytes:
        assert zeros is not None
        return _unsigned(_by_row(zeros, rows, start, stop, np.int8))

    def values(start: int, stop: int) -> Bytes:
        return _unsigned(weight.rows(start, stop, np.int8))

    order = checked_order(module, "weight_g_idx", columns, groups)
    return integer_tensor(
        module, rows, Integers(8, columns, groups, values, scales, None if zeros is None else points, order)
    )


def _scales(module: Module, rows: int, columns: int) -> tuple[Callable[[int, int], Floats], int]:
    """What reads scales of groups, rows or the whole tensor, as [rows, groups]; and the number of groups."""
    scale = module.need("weight_scale", dtypes=("F32", "F16", "BF16"))
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    if (scale.size != 1 and scale.size != rows * groups) or not groups or columns % groups:
        raise module.refuse(
            f"{scale.name} has shape {list(scale.shape)}, which gives no groups of a weight of {rows} x {columns}"
        )
    return lambda start, stop: _by_row(scale, rows, start, stop, np.float32), groups


def _by_row(part: StoredTensor, rows: int, start: int, stop: int, dtype: Any) -> Any:
    """Values [rows, groups] of rows; a single value counts for all."""
    if part.size == 1:
        return np.full((stop - start, 1), part.numpy(dtype).reshape(-1)[0])
    return part.numpy(dtype).reshape(rows, -1)[start:stop]


def _unsigned(values: Any) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8) ^ np.uint8(0x80)
