"""The formats of quantized checkpoints by quant_method, and those that are refused, each with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....targets.errors import InputError, closest
from ..lazy_tensors import FLOAT_DTYPES, ComputedTensor, LazyTensor
from ..safetensors_files import StoredTensor
from . import (
    awq_layout as awq,
)
from . import (
    bitsandbytes,
    compressed_tensors,
    scaled_floats,
)
from . import (
    gptq_layout as gptq,
)
from .declared import DeclaredQuantization
from .modules import Module

# Scales of activations and of KV caches: lensmith computes both in its own way, so they have no use here.
ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "activation_scale",
               "input_scale_ub", "k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point")  # fmt: skip
SCALES = ("weight_scale_inv", "weight_scale", "weight.absmax", "SCB", "scales")  # ends of names


def _any(settings: Mapping[str, Any], place: str) -> None:
    """Everything else shows at the tensors."""


def _modelopt(settings: Mapping[str, Any], place: str) -> None:
    algorithm = settings.get("quant_algo")
    if algorithm != "FP8":
        raise InputError(f"{place} names the algorithm {algorithm!r} of ModelOpt, which lensmith does not read; "
                         "expected FP8: export the checkpoint of floats it was made of")  # fmt: skip


@dataclass(frozen=True)
class Format:
    """How a format stores a weight: parts by the ends of their names, beside the weight's own, and what they make."""

    parts: tuple[str, ...]
    make: Callable[[Module], ComputedTensor]
    check: Callable[[Mapping[str, Any], str], None] = _any  # InputError for settings that are not supported


FLOATS8 = Format(scaled_floats.PARTS, scaled_floats.scaled_floats)
FORMATS: Mapping[str, Format] = {
    "fp8": FLOATS8,
    "fbgemm_fp8": FLOATS8,
    "modelopt": Format(scaled_floats.PARTS, scaled_floats.scaled_floats, _modelopt),
    "compressed-tensors": Format(
        compressed_tensors.PARTS, compressed_tensors.compressed_tensors, compressed_tensors.check_settings
    ),
    "bitsandbytes": Format(bitsandbytes.PARTS, bitsandbytes.bitsandbytes),
    "awq": Format(awq.PARTS, awq.awq),
    "gptq": Format(gptq.PARTS, gptq.gptq),
}
_ORIGINAL = "export the checkpoint of floats it was made of"
_DEQUANTIZE = f"{_ORIGINAL}, or save it as floats: transformers' model.dequantize() and save_pretrained"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("nvfp4", "mxfp4", "mxfp8", "modelopt_fp4", "fp_quant", "fouroversix", "auto-round", "aqlm",
                     "spqr", "vptq", "eetq", "bitnet", "metal", "gemma", "quark", "sinq"), _ORIGINAL),
    **dict.fromkeys(("hqq", "quanto", "torchao", "higgs"), _DEQUANTIZE),
    "mlx": f"{_ORIGINAL}, or write floats with `mlx_lm.convert --dequantize`",
    "gguf": "a GGUF file is what lensmith makes, not what it reads; export the safetensors checkpoint",
}  # fmt: skip


def check_declared(folder: Path, declared: DeclaredQuantization | None) -> None:
    """InputError for a quantization that lensmith does not read, before a weight is looked at."""
    if declared is None:
        return
    if declared.method in REFUSED:
        raise InputError(f"{folder} is quantized by {declared.method!r} ({declared.place}), which lensmith does not "
                         f"read; {REFUSED[declared.method]}")  # fmt: skip
    if declared.method not in FORMATS:
        raise InputError(f"{folder} is quantized by {declared.method!r} ({declared.place}), which lensmith does not "
                         f"read; {closest(declared.method, FORMATS)}")  # fmt: skip
    FORMATS[declared.method].check(declared.settings, declared.place)


def dequantized(
    folder: Path, tensors: Mapping[str, StoredTensor], declared: DeclaredQuantization | None
) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """The tensors of a checkpoint as floats, by name in sorted order, and those that have no use then.

    InputError that names the tensor for parts that are missing or left over, and for weights that lack their scales.
    """
    if declared is None:
        ends = {end for form in FORMATS.values() for end in form.parts}
        for name, tensor in tensors.items():
            if tensor.dtype.startswith("F8") or any(name.endswith(f".{end}") for end in ends):
                raise InputError(
                    f"{folder} has {name!r} ({tensor.dtype}), a part of quantized weights, but its config.json has no "
                    "quantization_config that says how to read them; download config.json again, and do not remove "
                    "that entry"
                )
        return dict(tensors), ()
    rest: dict[str, LazyTensor] = dict(tensors)
    unused = tuple(name for name in tensors if name.rpartition(".")[2] in ACTIVATIONS)
    form, made = FORMATS[declared.method], list[ComputedTensor]()
    for name, parts in _modules(tensors, form.parts).items():
        made.append(form.make(Module(name, parts, declared.settings)))
        for part in parts.values():
            del rest[part.name]
    for name in unused:
        del rest[name]
    wrong = next((t for t in rest.values() if t.name.endswith(".weight") and t.dtype not in FLOAT_DTYPES), None)
    if wrong is not None:
        module = wrong.name.removesuffix(".weight")
        scales = " or ".join(f"{module}.{part}" for part in form.parts if part.endswith(SCALES))
        raise InputError(f"{wrong.name} is stored as {wrong.dtype} without {scales}, by which "
                         f"{declared.method} weights are to be multiplied ({declared.place}); download the checkpoint "
                         "again, and do not remove scales")  # fmt: skip
    if not made:
        raise InputError(f"{folder} is quantized by {declared.method!r} as {declared.place} says, but no tensor is "
                         f"({', '.join(form.parts[:3])} are missing everywhere); if the weights are floats, remove "
                         "that entry, and else download the checkpoint again")  # fmt: skip
    return dict(sorted({**rest, **{tensor.name: tensor for tensor in made}}.items())), unused


def _modules(tensors: Mapping[str, StoredTensor], ends: tuple[str, ...]) -> dict[str, dict[str, StoredTensor]]:
    """The parts of quantized modules by module, and by the end of their names, the weight's own included."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        end = next((end for end in ends if name.endswith(f".{end}")), None)
        if end is not None:
            found.setdefault(name.removesuffix(f".{end}"), {})[end] = tensor
    for name, parts in found.items():
        if f"{name}.weight" in tensors:
            parts["weight"] = tensors[f"{name}.weight"]
    return found
