"""A graph in ONNX Runtime whose states lie in the memory of a device: what its providers for NVIDIA GPUs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .contract import Arrays
from .indexed import present_name, sized
from .states import CACHE, RECURRENT

# By ONNX Runtime's name of a type: what numpy carries it as, and ONNX's number. Bits of bfloat16 travel as float16.
TYPES: Mapping[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 1),
    "tensor(float16)": (np.float16, 10),
    "tensor(bfloat16)": (np.float16, 16),
    "tensor(int8)": (np.int8, 3),
    "tensor(int32)": (np.int32, 6),
    "tensor(int64)": (np.int64, 7),
}


@dataclass(frozen=True)
class Place:
    """Where buffers lie, in ONNX Runtime's words."""

    allocated: tuple[Any, ...]  # kind of device, its number and, where the kind is not enough, PCI vendor
    bound: str

    def put(self, values: NDArray[Any]) -> Any:
        """A buffer with a copy of an array, which the host itself would only look at."""
        return ort.OrtValue.ortvalue_from_numpy(np.array(values), *self.allocated)


class DeviceStates:
    """States of one conversation on a device; see indexed.Kept.

    A cache is written where it lies. Other states have two buffers that change places, as kernels may not read and
    write one; `turn` says which of them holds the past.
    """

    def __init__(self, place: Place, zeros: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
        self._zeros, self.turn = zeros, 0
        self.recurrent = [name for name in zeros if name.startswith(RECURRENT)]
        self.past = {name: place.put(make()) for name, make in zeros.items()}
        self.present = {**self.past, **{name: place.put(zeros[name]()) for name in self.recurrent}}
        self.singles: dict[int, Any] = {}  # what an executor keeps for steps of one token, by turn

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        return np.array(self.past[name].numpy())

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        self.past[name].update_inplace(self._zeros[name]() if values is None else np.ascontiguousarray(values))

    def move_on(self) -> None:
        """Behind a step: present states are past ones."""
        for name in self.recurrent:
            self.past[name], self.present[name] = self.present[name], self.past[name]
        self.turn = 1 - self.turn if self.recurrent else 0


class DeviceExecutor:
    """One session; see indexed.Executor. Caches hold `capacity` tokens, where the graph leaves that open."""

    def __init__(self, session: ort.InferenceSession, place: Place, *, capacity: int = 0) -> None:
        self.session, self.place = session, place
        ports = session.get_inputs(), session.get_outputs()
        self.inputs, self.outputs = ({port.name: sized(port.shape, capacity) for port in some} for some in ports)
        self.types = {port.name: TYPES[port.type] for some in ports for port in some}
        caches, recurrent = ([name for name in self.inputs if name.startswith(kind)] for kind in (CACHE, RECURRENT))
        self.states = [*caches, *recurrent]
        self.wanted = [name for name in self.outputs if name not in map(present_name, self.states)]

    def open_states(self) -> DeviceStates:
        """States of a new conversation, all zeros, in the device's memory."""
        return DeviceStates(self.place, {name: partial(self._zeros, name) for name in self.states})

    def step(self, feed: Arrays, kept: DeviceStates, options: Any = None) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on."""
        binding = self.session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, self.typed(name, values))
        for name in self.wanted:
            binding.bind_output(name, "cpu")
        self.bind_states(binding, kept)
        self.session.run_with_iobinding(binding, options)
        kept.move_on()
        made = binding.get_outputs()[: len(self.wanted)]
        return {name: value.numpy() for name, value in zip(self.wanted, made, strict=True)}

    def typed(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Values of an input as the graph has them."""
        return np.ascontiguousarray(values, self.types[name][0])

    def bind_states(self, binding: Any, kept: DeviceStates) -> None:
        """Past and present of each state to its buffers."""
        for name, past in kept.past.items():
            kind = (self.place.bound, 0, self.types[name][1], list(self.inputs[name]))
            binding.bind_input(name, *kind, past.data_ptr())
            binding.bind_output(present_name(name), *kind, kept.present[name].data_ptr())

    def _zeros(self, name: str) -> NDArray[Any]:
        return np.zeros(self.inputs[name], self.types[name][0])
