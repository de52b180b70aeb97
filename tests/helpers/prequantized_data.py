"""Writes small weights as bitsandbytes and compressed-tensors store them, with what these libraries read back.

Run `python -m tests.helpers.prequantized_data` where both are installed; the tests need the written file alone.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

from lensmith.exporters.evidence.torch_loading import import_torch

from tests.paths import DATA

FILE = DATA / "prequantized.safetensors"
EXPECTED = "expected"
SHAPE = (16, 64)

Case = tuple[str, dict[str, Any], dict[str, Any], Any]  # name, settings, parts by the end of their names, weight


def cases(torch: Any) -> Iterator[Case]:
    """Every case of both libraries."""
    weight = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0)) * 0.05
    yield from _bitsandbytes(torch, weight)
    yield from _compressed_tensors(torch, weight)


def _bitsandbytes(torch: Any, weight: Any) -> Iterator[Case]:
    functional = importlib.import_module("bitsandbytes.functional")
    kinds = itertools.product(("nf4", "fp4"), (False, True), ("float32", "float16", "bfloat16"), (32, 64))
    for kind, double, dtype, size in kinds:
        packed, state = functional.quantize_4bit(
            weight.to(getattr(torch, dtype)), blocksize=size, compress_statistics=double, quant_type=kind
        )
        parts = {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
        name = f"bitsandbytes {kind} {'double ' if double else ''}{dtype} {size}"
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        yield name, settings, parts, functional.dequantize_4bit(packed, state)
    packed, scale, _ = functional.int8_vectorwise_quant(weight.half())
    parts = {"weight": packed, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    yield "bitsandbytes int8", settings, parts, functional.int8_vectorwise_dequant(packed, scale)


def _compressed_tensors(torch: Any, weight: Any) -> Iterator[Case]:
    strategies: tuple[dict[str, Any], ...] = (
        {"strategy": "group", "group_size": 32},
        {"strategy": "channel"},
        {"strategy": "tensor"},
    )
    for strategy, symmetric in itertools.product(strategies, (True, False)):
        if symmetric or strategy["strategy"] != "tensor":
            for bits in (4, 8, 3):
                wanted = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
                yield _compressed(torch, weight, "pack-quantized", wanted)
        wanted = {"num_bits": 8, "type": "int", "symmetric": symmetric, **strategy}
        yield _compressed(torch, weight, "int-quantized" if symmetric else "naive-quantized", wanted)
    block = {"strategy": "block", "block_structure": [8, 32]}
    for strategy in (*strategies, block):
        wanted = {"num_bits": 8, "type": "float", "symmetric": True, **strategy}
        yield _compressed(torch, weight, "float-quantized", wanted)


def _compressed(torch: Any, weight: Any, form: str, wanted: dict[str, Any]) -> Case:
    """Scales are stored in bfloat16, and read in float32 as transformers does for a model in float32."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    compressors = importlib.import_module("compressed_tensors.compressors")
    parameters = importlib.import_module("compressed_tensors.quantization.utils")
    arguments = quantization.QuantizationArgs(**wanted)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    rows, columns = {
        "group": (1, wanted.get("group_size")),
        "channel": (1, SHAPE[1]),
        "tensor": SHAPE,
        "block": tuple(wanted.get("block_structure", ())),
    }[wanted["strategy"]]
    blocks = weight.reshape(SHAPE[0] // rows, rows, SHAPE[1] // columns, columns)
    scale, zero = parameters.calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), arguments)
    given = {"weight": weight, "weight_scale": scale.bfloat16()}
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    parts = compressor.compress(given if arguments.symmetric else {**given, "weight_zero_point": zero}, scheme)
    wide = {**parts, "weight_scale": parts["weight_scale"].float()}
    group = {"targets": ["Linear"], "weights": json.loads(arguments.model_dump_json())}
    settings = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    kind = "symmetric" if arguments.symmetric else "asymmetric"
    name = f"compressed-tensors {form} {wanted['num_bits']} {wanted['strategy']} {kind}"
    return name, settings, parts, compressor.decompress(wide, scheme)["weight"]


def main() -> None:
    """Write the file."""
    torch, _ = import_torch()
    save_file = importlib.import_module("safetensors.torch").save_file
    tensors: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, declared, parts, expected in cases(torch):
        settings[name] = declared
        tensors |= {f"{name}|{end}": value.contiguous().clone() for end, value in parts.items()}
        tensors[f"{name}|{EXPECTED}"] = expected.contiguous().clone()
    save_file(tensors, FILE, {"settings": json.dumps(settings)})
    print(f"{FILE}: {len(settings)} cases")


if __name__ == "__main__":
    main()
