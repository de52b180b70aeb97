"""What a device has: memory, and how quickly it reads and computes; by data sheets or by measuring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InputError, closest

# Kinds of arithmetic, each with what stands in for it where a device names no rate of its own. `attention` are products
# of queries, keys and values; integers are weights whose products round activations to 8 bits. `int8_stock` are
# those of a decoder with 8 bits, which ONNX Runtime's own kernels multiply.
STAND_INS: Mapping[str, tuple[str, ...]] = {
    "int2": ("int3", "int4", "int8", "float16", "float32"),
    "int3": ("int4", "int8", "float16", "float32"),
    "int4": ("int8", "float16", "float32"),
    "int8": ("float16", "float32"),
    "int8_stock": ("int8", "float16", "float32"),
    "float16": ("float32",),
    "float32": ("float16",),
    "attention": ("float16", "float32"),
}
FORMATS = ("onnx", "gguf", "tensorrt")  # that anything runs
WIDTHS = (16, 8, 4)  # bits of weights that any target's bundles may have


@dataclass(frozen=True)
class Device:
    """The table `[device]` of a profile. Rates are what programs reach, not the peaks of a data sheet."""

    memory_bytes: int  # all of it
    usable_bytes: int  # what a model may take
    read_bytes_per_s: float  # weights of one token, by all threads together
    threads: int  # that serve a model best
    formats: tuple[str, ...]  # that run here, the usual one first
    bits: tuple[int, ...]  # widths of weights that make sense
    group_size: int  # of integers below 8 bits
    operations_per_s: Mapping[str, float]  # products of many rows, by arithmetic; a multiplication and a sum are two

    def __post_init__(self) -> None:
        unknown = sorted(set(self.operations_per_s) - set(STAND_INS))
        if unknown:
            raise InputError(f"operations_per_s has {unknown[0]!r}; {closest(unknown[0], STAND_INS)}")
        if not {"float16", "float32"} & set(self.operations_per_s):
            raise InputError("operations_per_s has neither float32 nor float16, which stand in for the others; add one")
        counts = (self.memory_bytes, self.usable_bytes, self.read_bytes_per_s, self.threads)
        if not all(count > 0 for count in (*counts, *self.operations_per_s.values())):
            raise InputError("the table device has a rate or a size that is not above zero; expected positive numbers")
        self._check_builds()
        if self.usable_bytes > self.memory_bytes:
            raise InputError(f"usable_bytes {self.usable_bytes} is more than memory_bytes {self.memory_bytes}")

    def _check_builds(self) -> None:
        if not self.formats or not self.bits or self.group_size < 1:
            raise InputError("the table device has no formats, no bits, or a group_size below 1; expected some of each")
        for name in self.formats:
            if name not in FORMATS:
                raise InputError(f"formats has {name!r}; {closest(name, FORMATS)}")
        for bits in self.bits:
            if bits not in WIDTHS:
                raise InputError(f"bits has {bits}; expected some of {', '.join(map(str, WIDTHS))}")

    def rate(self, arithmetic: str) -> float:
        """Operations a second in a kind of arithmetic, or in the next that the device names."""
        names = (arithmetic, *STAND_INS[arithmetic])
        return next(self.operations_per_s[name] for name in names if name in self.operations_per_s)
