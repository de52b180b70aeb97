"""AWQ in AutoAWQ's GEMM layout: words along the outputs, eight integers of 4 bits each in an order of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...storage.packing import Bytes
from ..lazy_tensors import Floats
from ..safetensors_files import StoredTensor
from .integers import Integers, IntegerTensor, integer_tensor
from .modules import Module

PARTS = ("qweight", "qzeros", "scales")
LAYOUTS = ("", "gemm", "exllama", "ipex", "marlin")  # engines that read the GEMM layout and rearrange it themselves
SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)  # to the integer of each of eight outputs
BITS, EACH = 4, 8  # of an integer, and integers in a word


def awq(module: Module) -> IntegerTensor:
    """The weight of a module, [outputs, inputs]."""
    settings = module.settings
    layout = str(settings.get("version") or settings.get("format") or "").lower()
    if layout not in LAYOUTS or settings.get("backend") == "llm-awq":
        raise module.refuse(f"AWQ weights in the layout {layout or 'llm-awq'!r} are not supported; expected gemm: save "
                            'the checkpoint with AutoAWQ\'s version="GEMM"')  # fmt: skip
    declared = settings.get("bits", settings.get("w_bit", BITS))
    if declared != BITS:
        raise module.refuse(f"AWQ weights of {str(declared)[:50]} bits are not supported; expected {BITS}")
    qweight, qzeros = (module.need(name, rank=2, dtypes=("I32",)) for name in ("qweight", "qzeros"))
    scales = module.need("scales", rank=2)
    columns, rows, groups = qweight.shape[0], qweight.shape[1] * EACH, scales.shape[0]
    module.check(scales, groups, rows)
    module.check(qzeros, groups, rows // EACH)
    if not groups or columns % groups:
        raise module.refuse(f"{groups} groups do not divide {columns} inputs")

    def grid(start: int, stop: int) -> Floats:
        return np.ascontiguousarray(scales.columns(start, stop).T).astype(np.float32)

    made = Integers(BITS, columns, groups, _reader(qweight), grid, _reader(qzeros))
    return integer_tensor(module, rows, made)


def _reader(part: StoredTensor) -> Callable[[int, int], Bytes]:
    """What reads integers of some outputs, [outputs, inputs], from words [inputs, outputs / 8]; groups likewise."""

    def read(start: int, stop: int) -> Bytes:
        first = start // EACH
        words = part.columns(first, -(-stop // EACH)).view(np.uint32)
        nibbles = words[..., None] >> SHIFTS & np.uint32(15)
        values = nibbles.astype(np.uint8).reshape(len(words), -1)[:, start - first * EACH : stop - first * EACH]
        return np.ascontiguousarray(values.T)

    return read
