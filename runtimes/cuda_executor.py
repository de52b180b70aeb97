"""Graphs of the cuda dialect on ONNX Runtime's CUDA provider, with their states in device memory.

A step for one token has fixed sizes, so its buffers are bound once and the kernels replayed as one CUDA graph. ONNX
Runtime runs a step several times to record it, which must change nothing: a cache is written where it lies, with the
same values each time, and other states have two buffers that change places, as the kernels may not read and write one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..targets.errors import InputError, MissingExtra
from .engine import load_session
from .indexed import Arrays, present_name, sized
from .states import CACHE, RECURRENT

PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
HOST = "total_sequence_length"  # the one input that a kernel reads on the host
# By ONNX Runtime's name of a type: what numpy carries it as, and ONNX's number. Bits of bfloat16 travel as float16.
TYPES: Mapping[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 1),
    "tensor(float16)": (np.float16, 10),
    "tensor(bfloat16)": (np.float16, 16),
    "tensor(int8)": (np.int8, 3),
    "tensor(int32)": (np.int32, 6),
    "tensor(int64)": (np.int64, 7),
}
NO_GRAPH = "-1"  # the name of no CUDA graph

log = logging.getLogger(__name__)


def has_cuda() -> bool:
    """Whether the ONNX Runtime that is installed has a CUDA provider."""
    return PROVIDER in ort.get_available_providers()


def cuda_works() -> bool:
    """Whether there is a provider and a GPU that it can use."""
    if not has_cuda():
        return False
    try:
        need_cuda()
        _on_device(np.zeros(1, np.float32))
    except Exception:  # ONNX Runtime's own types, for want of a driver, a GPU or a library
        return False
    return True


def need_cuda() -> None:
    """MissingExtra where ONNX Runtime has no CUDA provider."""
    if not has_cuda():
        raise MissingExtra("a bundle for CUDA (uninstall onnxruntime, which comes without it, first)", "gpu")
    ort.preload_dlls()  # CUDA's libraries from their packages, where the system has none


def cuda_session(path: Path, *, graphs: bool, profile: bool = False) -> ort.InferenceSession:
    """A session on the first GPU; with `graphs`, one that records steps, where all its nodes run there.

    InputError where CUDA does not work on this machine.
    """
    options = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0", "enable_cuda_graph": str(int(graphs))}
    made = load_session(path, ort.SessionOptions(), [(PROVIDER, options), "CPUExecutionProvider"], profile=profile)
    if PROVIDER not in made.get_providers():
        raise InputError(
            f"{path} is for an NVIDIA GPU, and ONNX Runtime's CUDA provider does not start here; check the driver and "
            "CUDA's libraries, or load the bundle with device='cpu'"
        )
    return made


class CudaExecutor:
    """A graph on the GPU; see indexed.Executor. Caches hold `capacity` tokens and are written where they lie."""

    def __init__(self, path: Path, *, capacity: int = 0, profile: bool = False) -> None:
        need_cuda()
        self.session = self._open(path, profile)
        ports = self.session.get_inputs()
        self.inputs = {port.name: sized(port.shape, capacity) for port in ports}
        self.outputs = {port.name: sized(port.shape, capacity) for port in self.session.get_outputs()}
        self._types = {port.name: TYPES[port.type] for port in (*ports, *self.session.get_outputs())}
        self._past = {name: self._zeros(name) for name in self.inputs if name.startswith((CACHE, RECURRENT))}
        self._present = {**self._past, **{name: self._zeros(name) for name in self._recurrent()}}
        self._turn = 0  # which of its two buffers holds a recurrent state
        self._singles: dict[int, _Single] = {}  # by turn

    def _open(self, path: Path, profile: bool) -> ort.InferenceSession:
        self.recorded = False
        if path.stem != "vision_encoder":  # whose sizes differ from image to image
            try:
                made = cuda_session(path, graphs=True, profile=profile)
                self.recorded = True
                return made
            except InputError as error:
                log.info("no CUDA graph of %s: %s", path.name, error)
        return cuda_session(path, graphs=False, profile=profile)

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens."""
        if self.recorded and feed["input_ids"].shape[1] == 1 and len(feed["logit_positions"]) == 1:
            if self._turn not in self._singles:
                self._singles[self._turn] = _Single(self, feed, str(self._turn + 1))
            return self._moved_on(self._singles[self._turn].run(feed))
        binding = self.session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, self._typed(name, values))
        self._bind_states(binding)
        wanted = self._wanted()
        for name in wanted:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding, _run_options(NO_GRAPH) if self.recorded else None)
        made = binding.get_outputs()[-len(wanted) :]
        return self._moved_on({name: value.numpy() for name, value in zip(wanted, made, strict=True)})

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        return np.array(self._past[name].numpy())

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        shape, kind = self.inputs[name], self._types[name][0]
        self._past[name].update_inplace(np.zeros(shape, kind) if values is None else np.ascontiguousarray(values))

    def _moved_on(self, made: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of a step behind which present states are past ones."""
        states = list(self._recurrent())
        for name in states:
            self._past[name], self._present[name] = self._present[name], self._past[name]
        self._turn = 1 - self._turn if states else 0
        return made

    def _recurrent(self) -> Iterator[str]:
        return (name for name in self.inputs if name.startswith(RECURRENT))

    def _zeros(self, name: str) -> Any:
        return _on_device(np.zeros(self.inputs[name], self._types[name][0]))

    def _wanted(self) -> list[str]:
        return [name for name in self.outputs if name not in map(present_name, self._past)]

    def _typed(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(values, self._types[name][0])

    def _bind_states(self, binding: Any) -> None:
        """Past and present of each state to its buffers."""
        for name, past in self._past.items():
            kind = (DEVICE, 0, self._types[name][1], list(self.inputs[name]))
            binding.bind_input(name, *kind, past.data_ptr())
            binding.bind_output(present_name(name), *kind, self._present[name].data_ptr())


class _Single:
    """A step for one token with one position of logits, bound once and recorded under a name."""

    def __init__(self, owner: CudaExecutor, feed: Arrays, name: str) -> None:
        self.session, self.options = owner.session, _run_options(name)
        self.typed, self.names = owner._typed, owner._wanted()
        self.binding = self.session.io_binding()
        owner._bind_states(self.binding)
        self.given = {name: np.array(values) for name, values in feed.items() if name != HOST}
        self.inputs = {name: _on_device(np.array(owner._typed(name, values))) for name, values in self.given.items()}
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        # Recorded kernels are launched as for a full cache; how much of it counts, they read on the device.
        most = max((shape[2] for name, shape in owner.inputs.items() if name.startswith(CACHE)), default=1)
        if HOST in feed:
            self.binding.bind_cpu_input(HOST, np.array(most, np.int32))
        self.outputs = [_on_device(np.zeros([1, 1, owner.outputs[name][2]], np.float32)) for name in self.names]
        for name, value in zip(self.names, self.outputs, strict=True):
            self.binding.bind_ortvalue_output(name, value)

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """As of the executor."""
        for name, value in self.inputs.items():
            if not np.array_equal(feed[name], self.given[name]):  # most are the same from step to step
                self.given[name] = np.array(feed[name])
                value.update_inplace(self.typed(name, feed[name]))
        self.session.run_with_iobinding(self.binding, self.options)
        return {name: value.numpy() for name, value in zip(self.names, self.outputs, strict=True)}


def _on_device(values: NDArray[Any]) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(values, DEVICE, 0)


def _run_options(graph: str) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
