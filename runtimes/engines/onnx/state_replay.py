"""The way of recurrent states over a few tokens, once more, from what a step left of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from ..contract import Floats
from ..refusals import refusal_is_input
from .buffers import Buffers


class StateReplay:
    """The graph that `add_state_rows` cuts out of the file `path`."""

    def __init__(self, path: Path, session: ort.InferenceSession) -> None:
        self._path, self._session = path, session

    def __call__(self, rows: list[Floats], before: Buffers, behind: Buffers) -> None:
        """Write the states behind `rows` [1, tokens, width], one for each layer's product, into other buffers."""
        binding = self._session.io_binding()
        for index, part in enumerate(rows):
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(part))
            binding.bind_ortvalue_input(f"rows.{index}", value)
        before.feed(binding)
        behind.take(binding)
        with refusal_is_input(self._path):
            self._session.run_with_iobinding(binding)
