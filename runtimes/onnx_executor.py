"""Graphs for GPUs, of the dialects tensorrt and cuda, on ONNX Runtime's CPU kernels: what they mean, without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import session
from .indexed import Arrays, present_name, sized
from .refusals import refusal_is_input
from .states import CACHE, RECURRENT

TYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class OnnxExecutor:
    """A graph on the CPU; states are numpy arrays that each step replaces.

    Caches of any size hold `capacity` tokens. InputError for activations in bfloat16, which have no kernels here.
    """

    def __init__(self, path: Path, *, capacity: int = 0, threads: int | None = None, profile: bool = False) -> None:
        self.path, self.session = path, session(path, threads, profile=profile, native=False)
        ports = self.session.get_inputs()
        self.inputs = {port.name: sized(port.shape, capacity) for port in ports}
        self.outputs = {port.name: sized(port.shape, capacity) for port in self.session.get_outputs()}
        self._states = {port.name: np.zeros(self.inputs[port.name], TYPES[port.type]) for port in ports
                        if port.name.startswith((CACHE, RECURRENT))}  # fmt: skip

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens."""
        names = list(self.outputs)
        with refusal_is_input(self.path):
            made = dict(zip(names, self.session.run(names, {**feed, **self._states}), strict=True))
        self._states = {name: made.pop(present_name(name)) for name in self._states}
        return made

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        return self._states[name].copy()

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        self._states[name] = np.zeros_like(self._states[name]) if values is None else values.copy()
