"""Graphs for GPUs, of the dialects tensorrt and cuda, on ONNX Runtime's CPU kernels: what they mean, without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import Arrays
from ..indexed import present_name, sized
from ..refusals import refusal_is_input
from ..states import CACHE, RECURRENT
from .sessions import session

TYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class HostStates:
    """States as numpy arrays that each step replaces; see indexed.Kept."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        return self.arrays[name].copy()

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        self.arrays[name] = np.zeros_like(self.arrays[name]) if values is None else values.copy()


class OnnxExecutor:
    """A graph on the CPU; see indexed.Executor.

    Caches of any size hold `capacity` tokens. InputError for activations in bfloat16, which have no kernels here.
    """

    def __init__(self, path: Path, *, capacity: int = 0, threads: int | None = None, profile: bool = False) -> None:
        self.path, self.session = path, session(path, threads, profile=profile, native=False)
        ports = self.session.get_inputs()
        self.inputs = {port.name: sized(port.shape, capacity) for port in ports}
        self.outputs = {port.name: sized(port.shape, capacity) for port in self.session.get_outputs()}
        self._states = {port.name: TYPES[port.type] for port in ports if port.name.startswith((CACHE, RECURRENT))}

    def open_states(self) -> HostStates:
        """States of a new conversation, all zeros."""
        return HostStates({name: np.zeros(self.inputs[name], kind) for name, kind in self._states.items()})

    def run(self, feed: Arrays, kept: HostStates) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens."""
        names = list(self.outputs)
        with refusal_is_input(self.path):
            made = dict(zip(names, self.session.run(names, {**feed, **kept.arrays}), strict=True))
        kept.arrays = {name: made.pop(present_name(name)) for name in kept.arrays}
        return made
