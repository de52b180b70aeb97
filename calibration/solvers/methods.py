"""The methods of quantizing a matrix, by name: one signature, so that a driver can try and compare them."""

from __future__ import annotations

from collections.abc import Callable

from ...exporters.storage.rounding import Floats, Groups, quantize
from .descent import descent
from .gptq import gptq
from .inputs import Inputs
from .levels import IntegerGrid
from .search import search

Method = Callable[[Floats, Inputs, IntegerGrid], Groups]  # weight float32 [rows, columns]


def round_to_nearest(weight: Floats, inputs: Inputs, grid: IntegerGrid) -> Groups:
    """Scales from the smallest and largest weight of each group; the inputs are not looked at."""
    return quantize(weight, bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)


METHODS: dict[str, Method] = {
    "rtn": round_to_nearest,
    "mse": search,
    "gptq": gptq,
    "descent": descent,
}
