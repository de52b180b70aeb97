"""Turns checkpoints of floats into quantized ones, with what each stored weight stands for, written out plainly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float32]
Array = NDArray[Any]
Made = tuple[dict[str, Array], Floats]  # parts by the end of their names, and the weight they stand for
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of AutoAWQ's order_map


@dataclass(frozen=True)
class Variant:
    """One way to quantize: what config.json says, and what becomes of a weight [outputs, inputs]."""

    settings: dict[str, Any]
    make: Callable[[Floats], Made]
    place: str = "quantization_config"  # or a section and a key, or the name of a file
    kept: dict[str, Any] = field(default_factory=dict)  # options of an export that keeps the integers


def quantized_copy(source: Path, out: Path, variant: Variant, chosen: Callable[[str], bool]) -> Path:
    """Write `out/stored`, a quantized copy, and `out/floats`, with the weights that it stands for; returns `out`."""
    tensors, stored, floats = load_file(source / "model.safetensors"), {}, {}
    for name, value in tensors.items():
        stored[name] = floats[name] = value
        if name.endswith("proj.weight") and value.ndim == 2 and chosen(name):
            del stored[name]
            parts, floats[name] = variant.make(value.astype(np.float32))
            stored |= {f"{name.removesuffix('weight')}{end}": part for end, part in parts.items()}
    for folder, values in (("stored", stored), ("floats", floats)):
        shutil.copytree(source, out / folder, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file({n: np.ascontiguousarray(v) for n, v in values.items()}, out / folder / "model.safetensors")
    declare(out / "stored", variant)
    return out


def declare(folder: Path, variant: Variant) -> None:
    """Say in a checkpoint how it is quantized."""
    if variant.place.endswith(".json"):
        (folder / variant.place).write_text(json.dumps(variant.settings))
        return
    config = json.loads((folder / "config.json").read_text())
    *sections, key = variant.place.split("/")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[key] = variant.settings
    (folder / "config.json").write_text(json.dumps(config))


def decoder_only(name: str) -> bool:
    """Whether a tensor belongs to the decoder."""
    return "language_model" in name


def _levels(weight: Floats, bits: int, group: int, *, symmetric: bool) -> tuple[Array, Floats, Array, Floats]:
    """Integers [outputs, inputs], scales of float16 and zero points [outputs, groups], and the weight again."""
    rows, columns = weight.shape
    size = group if group > 0 else columns
    blocks = weight.reshape(rows, -1, size)
    top = 2**bits - 1
    if symmetric:
        scales, zeros = np.abs(blocks).max(2) * 2 / top, np.full(blocks.shape[:2], 2 ** (bits - 1), np.int64)
    else:
        low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
        scales = (high - low) / top
        zeros = np.clip(np.rint(-low / scales), 1, top).astype(np.int64)
    scales = scales.astype(np.float16).astype(np.float32)
    levels = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, top).astype(np.int64)
    restored = (levels - zeros[..., None]).astype(np.float32) * scales[..., None]
    return levels.reshape(rows, columns), scales, zeros, restored.reshape(rows, columns)


def _stream(values: Array, bits: int) -> Array:
    """Rows of integers as rows of int32, bit after bit: value i begins at bit i * bits."""
    words = np.zeros((len(values), -(-values.shape[1] * bits // 32)), np.uint64)
    for index in range(values.shape[1]):
        word, shift = divmod(index * bits, 32)
        value = values[:, index].astype(np.uint64)
        words[:, word] |= value << np.uint64(shift) & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[:, word + 1] |= value >> np.uint64(32 - shift)
    return words.astype(np.uint32).view(np.int32)


def gptq(bits: int, group: int, *, symmetric: bool = True, shuffled: bool = False, second: bool = False) -> Variant:
    """GPTQ of the first or second version; `shuffled` has groups of scattered columns (act-order)."""

    def make(weight: Floats) -> Made:
        columns = weight.shape[1]
        order = np.random.default_rng(columns).permutation(columns) if shuffled else np.arange(columns)
        levels, scales, zeros, restored = _levels(weight[:, order], bits, group, symmetric=symmetric)
        back = np.argsort(order)
        stored = zeros if second else zeros - 1
        parts = {
            "qweight": _stream(levels[:, back], bits).T,
            "qzeros": _stream(stored.T, bits),
            "scales": scales.T.astype(np.float16),
            "g_idx": (back // (group if group > 0 else columns)).astype(np.int32),
        }
        return parts, restored[:, back]

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": symmetric}
    form = {"checkpoint_format": "gptq_v2"} if second else {}
    kept = {} if shuffled or bits not in (4, 8) else _options(bits, group, symmetric)
    return Variant({**settings, **form}, make, kept=kept)


def awq(group: int, **more: Any) -> Variant:
    """AWQ in the GEMM layout."""

    def pack(values: Array) -> Array:
        words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for index, place in enumerate(AWQ_ORDER):
                words[:, column] |= (values[:, column * 8 + place] << (4 * index)).astype(np.uint32)
        return words.view(np.int32)

    def make(weight: Floats) -> Made:
        levels, scales, zeros, restored = _levels(weight, 4, group, symmetric=False)
        return {"qweight": pack(levels.T), "qzeros": pack(zeros.T), "scales": scales.T.astype(np.float16)}, restored

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True, **more}
    return Variant(settings, make, kept=_options(4, group, False))


def packed(bits: int, group: int, *, symmetric: bool = True, shuffled: bool = False) -> Variant:
    """compressed-tensors' pack-quantized, W4A16 or W8A16."""

    def make(weight: Floats) -> Made:
        columns = weight.shape[1]
        order = np.random.default_rng(columns).permutation(columns) if shuffled else np.arange(columns)
        levels, scales, zeros, restored = _levels(weight[:, order], bits, group, symmetric=symmetric)
        back = np.argsort(order)
        parts = {
            "weight_packed": _stream(levels[:, back], bits),
            "weight_scale": scales.astype(np.float16),
            "weight_shape": np.array(weight.shape, np.int64),
        }
        if not symmetric:
            parts["weight_zero_point"] = _stream(zeros.T, bits).T
        if shuffled:
            parts["weight_g_idx"] = (back // group).astype(np.int32)
        return parts, restored[:, back]

    scheme = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group}
    kept = {} if shuffled or bits not in (4, 8) else _options(bits, group, symmetric)
    return Variant(_compressed("pack-quantized", scheme), make, kept=kept)


def _compressed(form: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights)}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": []}


def fp8(block: tuple[int, int] | None, *, scale: str = "weight_scale_inv", place: str = "quantization_config",
        **settings: Any) -> Variant:  # fmt: skip
    """Floats of 8 bits with a scale for each block, row (a block of one row) or, with None, for all."""

    def make(weight: Floats) -> Made:
        rows, columns = weight.shape
        height, width = block or (rows, columns)
        width = width or columns
        grid = (-(-rows // height), -(-columns // width))
        padded = np.zeros((grid[0] * height, grid[1] * width), np.float32)
        padded[:rows, :columns] = np.abs(weight)
        scales = (padded.reshape(grid[0], height, grid[1], width).max((1, 3)) / 448).astype(np.float32)
        full = np.repeat(np.repeat(scales, height, 0), width, 1)[:rows, :columns]
        stored = (weight / full).astype(ml_dtypes.float8_e4m3fn)
        return {"weight": stored, scale: scales if block else scales.reshape(())}, stored.astype(np.float32) * full

    return Variant({"quant_method": "fp8", "weight_block_size": list(block) if block else None, **settings}, make,
                   place=place)  # fmt: skip


def int8_rows() -> Variant:
    """compressed-tensors' int-quantized: a byte for each weight, a scale for each row."""

    def make(weight: Floats) -> Made:
        levels, scales, _, restored = _levels(weight, 8, -1, symmetric=True)
        return {"weight": (levels - 128).astype(np.int8), "weight_scale": scales.astype(np.float16)}, restored

    settings = _compressed("int-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"})
    return Variant(settings, make, kept=_options(8, -1, True))


NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
                1.0], np.float32)  # fmt: skip


def nf4(size: int = 64, nested: int | None = None) -> Variant:
    """bitsandbytes' 4 bits of a weight that was bfloat16; `nested` blocks have quantized scales, with one of their own.

    The library has 256 of them; fewer show in small weights what many do in large ones.
    """

    def make(weight: Floats) -> Made:
        blocks = weight.reshape(-1, size)
        largest = np.abs(blocks).max(1)
        more, scales = ({"weight.absmax": largest}, largest) if nested is None else _doubled(largest, nested)
        levels = np.abs((blocks / largest[:, None])[..., None] - NF4).argmin(-1).reshape(-1, 2).astype(np.uint8)
        restored = (NF4[levels.reshape(-1, size)] * scales[:, None]).astype(ml_dtypes.bfloat16).astype(np.float32)
        state = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": list(weight.shape)}
        state |= {} if nested is None else {"nested_blocksize": nested, "nested_offset": float(largest.mean())}
        parts = {
            "weight": (levels[:, 0] << 4 | levels[:, 1])[:, None],
            **more,
            "weight.quant_map": NF4,
            "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
        }
        return parts, restored.reshape(weight.shape)

    return Variant({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, make)


def _doubled(scales: Floats, size: int) -> tuple[dict[str, Array], Floats]:
    """Scales in 8 bits through a table, around their mean: their parts, and what they stand for."""
    table, mean = np.linspace(-1, 1, 256).astype(np.float32), np.float32(scales.mean())
    around = np.resize(scales - mean, (-(-len(scales) // size), size))
    largest = np.abs(around).max(1)
    codes = np.abs((around / largest[:, None])[..., None] - table).argmin(-1).astype(np.uint8)
    restored = (table[codes] * largest[:, None]).reshape(-1)[: len(scales)] + mean
    parts = {"weight.absmax": codes.reshape(-1)[: len(scales)], "weight.nested_absmax": largest}
    return {**parts, "weight.nested_quant_map": table}, restored


def llm_int8() -> Variant:
    """bitsandbytes' 8 bits."""

    def make(weight: Floats) -> Made:
        largest = np.abs(weight).max(1)
        levels = np.rint(weight * (127 / largest[:, None])).astype(np.int8)
        restored = levels.astype(np.float32) * largest[:, None] * np.float32(7.874015718698502e-3)
        return {"weight": levels, "SCB": largest, "weight_format": np.array(0, np.uint8)}, restored

    return Variant({"quant_method": "bitsandbytes", "load_in_8bit": True}, make)


def _options(bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    return {"precision": f"int{bits}", "group_size": max(group, 0), "symmetric": symmetric}


VARIANTS: Mapping[str, Variant] = {
    "fp8 blocks": fp8((32, 64)),
    "fp8 ragged blocks": fp8((48, 80), place="text_config/quantization_config"),
    "fp8 tensors": fp8(None),
    "fp8 rows": fp8((1, 0), scale="weight_scale", quant_method="fbgemm_fp8"),
    "fp8 of ModelOpt": fp8(None, scale="weight_scale", place="hf_quant_config.json", quant_method="modelopt",
                           quant_algo="FP8"),
    "fp8 of compressed-tensors": fp8((1, 0), scale="weight_scale", place="compression_config",
                                     **_compressed("float-quantized", {"num_bits": 8, "type": "float"})),
    "nf4": nf4(),
    "nf4 double": nf4(nested=12),
    "LLM.int8()": llm_int8(),
    "awq": awq(32),
    "awq of channels": awq(-1, version="GEMM"),
    "gptq": gptq(4, 64),
    "gptq asymmetric": gptq(4, 32, symmetric=False),
    "gptq second version": gptq(4, 32, symmetric=False, second=True),
    "gptq act-order": gptq(4, 32, shuffled=True),
    "gptq 8 bits": gptq(8, 128),
    "gptq 3 bits": gptq(3, 32),
    "gptq 2 bits": gptq(2, 32, symmetric=False),
    "packed 4 bits": packed(4, 128),
    "packed 4 bits asymmetric": packed(4, 32, symmetric=False),
    "packed 4 bits act-order": packed(4, 32, shuffled=True),
    "packed 6 bits": packed(6, 32, symmetric=False),
    "packed 8 bits": packed(8, 64),
    "packed channels": packed(4, -1),
    "int8 rows": int8_rows(),
}  # fmt: skip
