"""Rotary frequencies of text decoders: the base geometric series, and the ways in which checkpoints stretch it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...targets.errors import InputError

Frequencies = NDArray[np.float32]  # [head_dim / 2], radians for each position


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies differ from the series, in the words of transformers' `rope_parameters`."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0  # tokens that the model was first trained for

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            allowed = ", ".join(map(repr, SCALINGS))
            raise InputError(f"config value rope_type is {self.kind!r}, not supported; expected {allowed}")
        if not self.factor > 0 or not self.high_freq_factor > self.low_freq_factor > 0:
            raise InputError(f"config values of rope scaling are {self}; expected positive factors, high above low")


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Frequencies:
    """The angle of one position for each pair of values of a head, in the float32 operations of transformers."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    series = (1.0 / theta**exponents).astype(np.float32)
    return SCALINGS[scaling.kind](series, scaling)


def _default(series: Frequencies, scaling: RopeScaling) -> Frequencies:
    return series


def _linear(series: Frequencies, scaling: RopeScaling) -> Frequencies:
    return series / np.float32(scaling.factor)


def _llama3(series: Frequencies, scaling: RopeScaling) -> Frequencies:
    """Llama 3.1: long waves are stretched, short ones stay, those between are blended."""
    low, high, factor = (np.float32(x) for x in (scaling.low_freq_factor, scaling.high_freq_factor, scaling.factor))
    waves = np.float32(2 * math.pi) / series  # tokens
    turns = np.float32(scaling.original_context) / waves
    share = (turns - low) / (high - low)
    blended = (1 - share) * series / factor + share * series
    return np.where(turns < low, series / factor, np.where(turns > high, series, blended)).astype(np.float32)


SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3}
NO_SCALING = RopeScaling()
