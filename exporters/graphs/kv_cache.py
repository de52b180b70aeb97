"""How a decoder keeps keys and values: in 32 or 16 bits, or in 8 with a scale for each channel of each head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...targets.errors import InputError, closest
from ..spec import DecoderSpec

KINDS = ("float", "float16", "int8")  # float: in the type of activations
HALF_WIDTHS = range(16, 257, 16)  # of heads, in a cache that lensmith's own operators attend over
Scales = tuple[NDArray[np.float32], NDArray[np.float32]]  # of keys and of values, [kv_heads, head_dim] each
KvScales = Mapping[int, Scales]  # by decoder layer, see `channel_scales` in calibration/solvers/kv_scales.py


@dataclass(frozen=True)
class KvCache:
    """`kind` is one of KINDS; int8 needs the scales of all attention layers before a bundle can be written.

    Keys count behind their rotation. A draft head keeps its one layer in float32. float16 costs 1e-6 nats on the
    trained models, where bfloat16 costs up to 1e-4.
    """

    kind: str = "float"
    scales: KvScales = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        return self.kind == "int8"

    @property
    def bits(self) -> int:
        """Of a key or value; those in float have 32 unless activations have fewer."""
        return {"float": 32, "float16": 16, "int8": 8}[self.kind]

    @property
    def complete(self) -> bool:
        """Whether the scales are those of a calibration."""
        return not self.quantized or bool(self.scales)

    def of(self, layer: int, spec: DecoderSpec) -> Scales | None:
        """The scales of a layer; ones where none were given, which serve a plan; None where there are none."""
        if not self.quantized or layer in spec.linear_layers:
            return None
        if not self.scales:
            ones = np.ones((spec.kv_heads, spec.head_dim), np.float32)
            return ones, ones
        return self.scales[layer]

    @property
    def digest(self) -> str:
        """A hash of the scales."""
        digest = hashlib.sha256()
        for layer in sorted(self.scales):
            for scales in self.scales[layer]:
                digest.update(scales.tobytes())
        return digest.hexdigest()


FLOAT_CACHE = KvCache()
HALF_CACHE = KvCache("float16")


def make_kv_cache(kind: str, scales: KvScales | None, spec: DecoderSpec | None) -> KvCache:
    """The cache of a decoder; `spec` None for models without one.

    Raises InputError for an unknown kind, and for another one than float without a decoder or with heads that it cannot
    have; ValueError for scales that do not fit.
    """
    if kind not in KINDS:
        raise InputError(f"unknown KV cache {kind!r}; {closest(kind, KINDS)}")
    if kind == "float":
        return FLOAT_CACHE
    if spec is None:
        raise InputError("a vision encoder alone has no KV cache; leave --kv-cache out")
    if kind == "float16":
        if spec.head_dim not in HALF_WIDTHS:
            raise InputError(
                f"--kv-cache float16 takes heads of 16, 32, ... or 256 values; these have {spec.head_dim}: leave it out"
            )
        return HALF_CACHE
    if scales is None:
        return KvCache(kind)
    expected = [layer for layer in range(spec.layers) if layer not in spec.linear_layers]
    if sorted(scales) != expected:
        raise ValueError(f"scales are for the layers {sorted(scales)}; attention layers are {expected}")
    return KvCache(kind, {layer: _checked(layer, scales[layer], spec) for layer in expected})


def _checked(layer: int, pair: Scales, spec: DecoderSpec) -> Scales:
    shape = (spec.kv_heads, spec.head_dim)
    for scales in pair:
        if scales.shape != shape or not (np.isfinite(scales) & (scales > 0)).all():
            raise ValueError(f"the scales of layer {layer} are not positive numbers [kv_heads, head_dim] = {shape}")
    keys, values = (np.ascontiguousarray(scales, np.float32) for scales in pair)
    return keys, values
