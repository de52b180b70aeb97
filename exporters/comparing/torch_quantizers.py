"""Ways to run PyTorch's matrices in 4 bits on a CPU, by libraries that are installed beside it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...targets.errors import InputError, closest


@dataclass(frozen=True)
class Quantizer:
    """One way: the library, and what it makes of a linear layer."""

    library: str
    linear: Callable[[Any, Any], Any]  # the library's module, and the layer


def _four_bits(library: Any, layer: Any) -> Any:
    """Blocks of 64 weights at the levels of NormalFloat4, computed in the layer's own dtype."""
    new = library.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )  # fmt: skip
    new.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    new.bias = layer.bias
    return new.to("cpu")  # where it packs


QUANTIZERS: Mapping[str, Quantizer] = {"bitsandbytes-nf4": Quantizer("bitsandbytes", _four_bits)}


def check_quantizer(name: str) -> None:
    """Raises InputError for an unknown way, and where its library is missing."""
    if name not in QUANTIZERS:
        raise InputError(f"PyTorch has no matrices of {name!r}; {closest(name, QUANTIZERS)}")
    if importlib.util.find_spec(QUANTIZERS[name].library) is None:
        library = QUANTIZERS[name].library
        raise InputError(f"the baseline {name} needs {library}; run: pip install {library}")


def quantized(model: Any, name: str) -> str:
    """Replace the linear layers of a model's decoder; what it is called, with the version of the library."""
    check_quantizer(name)
    way = QUANTIZERS[name]
    library = importlib.import_module(way.library)
    _replace(model.get_decoder(), way, library)
    return f"{name} {library.__version__}"


def _replace(module: Any, way: Quantizer, library: Any) -> None:
    linear = importlib.import_module("torch").nn.Linear
    for name, child in module.named_children():
        if isinstance(child, linear):
            setattr(module, name, way.linear(library, child))
        else:
            _replace(child, way, library)
