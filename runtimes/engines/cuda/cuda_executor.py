"""Graphs of the cuda dialect on ONNX Runtime's CUDA provider, with their states in device memory.

A step for one token has fixed sizes, so its buffers are bound once for a conversation and the kernels replayed as one
CUDA graph. ONNX Runtime runs a step several times to record it, which changes nothing: each time it reads the same past
states, and writes the same values into the cache and the present ones.
"""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ....targets.errors import InputError, MissingExtra
from ..contract import Arrays
from ..device_executor import DeviceExecutor, DeviceStates, Place
from ..onnx.sessions import load_session
from ..onnxruntime_packages import conflict
from ..states import CACHE

PROVIDER, GPU = "CUDAExecutionProvider", Place(("cuda", 0), "cuda")
HOST = "total_sequence_length"  # the one input that a kernel reads on the host
NO_GRAPH = "-1"  # the name of no CUDA graph

log = logging.getLogger(__name__)


def has_cuda() -> bool:
    """Whether the ONNX Runtime that is installed has a CUDA provider."""
    return PROVIDER in ort.get_available_providers()


def cuda_works() -> bool:
    """Whether there is a provider and a GPU that it can use."""
    if not has_cuda():
        if (clash := conflict()) is not None:
            log.warning("no CUDA: %s", clash)
        return False
    try:
        need_cuda()
        GPU.put(np.zeros(1, np.float32))
    except Exception:  # ONNX Runtime's own types, for want of a driver, a GPU or a library
        return False
    return True


def need_cuda() -> None:
    """MissingExtra where ONNX Runtime has no CUDA provider, InputError where another package of it overwrote that."""
    clash = conflict()
    if not has_cuda():
        if clash is not None:
            raise InputError(f"a bundle for CUDA needs ONNX Runtime's CUDA provider, which is gone: {clash}")
        raise MissingExtra("a bundle for CUDA (uninstall onnxruntime, which comes without it, first)", "gpu")
    if clash is not None:
        log.warning("%s", clash)
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


def _open(path: Path, *, profile: bool) -> tuple[ort.InferenceSession, bool]:
    """A session, and whether it records steps."""
    if path.stem != "vision_encoder":  # whose sizes differ from image to image
        try:
            return cuda_session(path, graphs=True, profile=profile), True
        except InputError as error:
            log.info("no CUDA graph of %s: %s", path.name, error)
    return cuda_session(path, graphs=False, profile=profile), False


class CudaExecutor(DeviceExecutor):
    """A graph on the GPU; see indexed.Executor."""

    def __init__(self, path: Path, *, capacity: int = 0, profile: bool = False) -> None:
        need_cuda()
        session, self.recorded = _open(path, profile=profile)
        super().__init__(session, GPU, capacity=capacity)
        self._graphs = count(1)  # names of recorded steps: each holds for the buffers it was recorded with

    def run(self, feed: Arrays, kept: DeviceStates) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens."""
        if not self.recorded:
            return self.step(feed, kept)
        if feed["input_ids"].shape[1] > 1 or len(feed["logit_positions"]) > 1:
            return self.step(feed, kept, _run_options(NO_GRAPH))
        if kept.turn not in kept.singles:
            kept.singles[kept.turn] = _Single(self, kept, feed, graph=str(next(self._graphs)))
        made: dict[str, NDArray[Any]] = kept.singles[kept.turn].run(feed)
        kept.move_on()
        return made


class _Single:
    """A step for one token with one position of logits, bound once to the states in one turn and recorded."""

    def __init__(self, owner: CudaExecutor, kept: DeviceStates, feed: Arrays, *, graph: str) -> None:
        self.owner, self.options = owner, _run_options(graph)
        self.binding = owner.session.io_binding()
        owner.bind_states(self.binding, kept)
        self.given = {name: np.array(values) for name, values in feed.items() if name != HOST}
        self.inputs = {name: owner.place.put(owner.typed(name, values)) for name, values in self.given.items()}
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        # Recorded kernels are launched as for a full cache; how much of it counts, they read on the device.
        most = max((shape[2] for name, shape in owner.inputs.items() if name.startswith(CACHE)), default=1)
        if HOST in feed:
            self.binding.bind_cpu_input(HOST, np.array(most, np.int32))
        sizes = {name: (1, 1, owner.outputs[name][2]) for name in owner.wanted}
        self.outputs = {name: owner.place.put(np.zeros(size, np.float32)) for name, size in sizes.items()}
        for name, value in self.outputs.items():
            self.binding.bind_ortvalue_output(name, value)

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs but the states."""
        for name, value in self.inputs.items():
            if not np.array_equal(feed[name], self.given[name]):  # most are the same from step to step
                self.given[name] = np.array(feed[name])
                value.update_inplace(self.owner.typed(name, feed[name]))
        self.owner.session.run_with_iobinding(self.binding, self.options)
        return {name: value.numpy() for name, value in self.outputs.items()}


def _run_options(graph: str) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
