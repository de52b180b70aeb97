"""Memory that several steps of a graph read and write."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from ..states import CACHE, RECURRENT


class Buffers:
    """Arrays by the names of a graph's inputs, as ONNX Runtime takes them."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}

    def feed(self, binding: Any) -> None:
        """Bind them to the inputs of a step."""
        for name, value in self.values.items():
            binding.bind_ortvalue_input(name, value)

    def take(self, binding: Any) -> None:
        """Bind them to the outputs of a step."""
        for name, value in self.values.items():
            binding.bind_ortvalue_output(name.replace(CACHE, "present.").replace(RECURRENT, "present."), value)
