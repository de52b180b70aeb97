"""Which engine runs a graph of a bundle: one row for each kind of file and dialect."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from ...targets.errors import InputError
from ..bundle.opening import Bundle
from ..media.images import Grid
from ..media.media_encoder import Vision
from ..media.places import ArlowPlaces, qwen_index
from ..values import truth, whole
from .contract import VisionEncoder
from .cuda.cuda_executor import CudaExecutor, cuda_works
from .decoding import Decoder
from .indexed import Executor, IndexedDecoder, IndexedVision
from .onnx.onnx_decoder import OnnxDecoder
from .onnx.onnx_executor import OnnxExecutor
from .tensorrt.tensorrt_executor import TensorRTExecutor
from .tensorrt.tensorrt_plugin import PluginExecutor

ORT, CUDA, TENSORRT, ENGINE = "ort", "cuda", "tensorrt", ".engine"  # dialects, and the end of a file's name
CPU = "cpu"
DEVICES = (CPU, CUDA)
MOST_THREADS = 256  # or as many as there are cores
T = TypeVar("T")


@dataclass(frozen=True)
class Wishes:
    """How a bundle is to be run."""

    capacity: int = 0  # tokens
    threads: int | None = None
    profile: bool = False
    native: bool | None = None
    device: str | None = None  # one of DEVICES; None: what the bundle was made for

    def on_cpu(self) -> dict[str, Any]:
        """Those that graphs on the CPU know."""
        return {"threads": self.threads, "profile": self.profile, "native": self.native}


def open_vision(bundle: Bundle, wishes: Wishes) -> Vision:
    """The vision encoder of a bundle, loaded. InputError for a device that it was not made for."""
    check_device(bundle, wishes.device)
    if dialect(bundle, "vision_encoder") == ORT:
        return VisionEncoder(bundle.graph("vision_encoder"), **wishes.on_cpu())
    executor = _executor(bundle, "vision_encoder", wishes)
    return IndexedVision(executor, _index(bundle), by_frame="encoder" not in bundle.content)


def open_decoder(bundle: Bundle, name: str, wishes: Wishes) -> Decoder[Any]:
    """The decoder of a bundle, or its head for multi-token prediction, loaded. InputError as of `open_vision`."""
    check_device(bundle, wishes.device)
    if dialect(bundle, name) == ORT:
        return OnnxDecoder(bundle.graph(name), capacity=wishes.capacity, **wishes.on_cpu())
    return IndexedDecoder(_executor(bundle, name, wishes), capacity=wishes.capacity)


def remade_on_cpu(bundle: Bundle, wishes: Wishes, make: Callable[[Bundle], T]) -> Callable[[], T] | None:
    """How a forked process opens the engines of a bundle again: with the same files. None for those on a GPU."""
    graphs = bundle.content["graphs"].values()
    if any("engine" in graph or "plugin" in graph for graph in graphs) or _on_cuda(bundle.content, wishes):
        return None
    lasting = replace(bundle, path=Path(os.path.abspath(bundle.path)))
    return lambda: made_of(lasting.again(), make)


def made_of(bundle: Bundle, make: Callable[[Bundle], T]) -> T:
    """The engines of a bundle. InputError where a file was changed since it was checked."""
    made = make(bundle)
    bundle.check_unchanged()
    return made


def usable_device(manifest: Mapping[str, Any]) -> str | None:
    """The device to prove a new bundle on: the CPU for one whose GPU is not here."""
    return CPU if _for_cuda(manifest) and not cuda_works() else None


def _on_cuda(manifest: Mapping[str, Any], wishes: Wishes) -> bool:
    return _for_cuda(manifest) and wishes.device != CPU


def _for_cuda(manifest: Mapping[str, Any]) -> bool:
    return any(graph.get("dialect") == CUDA for graph in manifest["graphs"].values())


def check_device(bundle: Bundle, device: str | None) -> None:
    """Raises InputError for an unknown device, and for CUDA where the bundle is not for it."""
    if device not in (None, *DEVICES):
        raise InputError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")
    if device == CUDA and not _for_cuda(bundle.content):
        raise InputError(
            f"the bundle {bundle.path} is for the target {bundle.content['target']}, not for CUDA; "
            "export it with --target cuda"
        )


def check_wishes(bundle: Bundle, wishes: Wishes) -> None:
    """Raises InputError for wishes out of range, and for those that the engine of a bundle cannot obey."""
    check_device(bundle, wishes.device)
    if wishes.threads is not None:
        whole("threads", wishes.threads, 1, max(MOST_THREADS, os.cpu_count() or 1))
    truth("profile", wishes.profile)
    truth("native", bool(wishes.native) if wishes.native is None else wishes.native)
    graphs = bundle.content["graphs"]
    llama = bundle.content["options"].get("format") == "gguf"
    fixed = any("engine" in graph or "plugin" in graph for graph in graphs.values())
    own = not llama and all(dialect(bundle, name) == ORT for name in graphs)
    unread = {
        "native=True": wishes.native is True and not own,
        "profile=True": wishes.profile and (llama or fixed),
        f"device={wishes.device!r}": wishes.device is not None and fixed,
    }
    for wish, lost in unread.items():
        if lost:
            raise InputError(f"{wish} has no effect on the engine of the bundle {bundle.path}; leave it out")


def dialect(bundle: Bundle, name: str) -> str:
    """The dialect of a graph."""
    return str(bundle.content["graphs"].get(name, {}).get("dialect", ORT))


def _executor(bundle: Bundle, name: str, wishes: Wishes) -> Executor[Any]:
    path, entry = bundle.graph(name), bundle.content["graphs"][name]
    if path.suffix == ENGINE:
        return TensorRTExecutor(path, entry)
    if "plugin" in entry:
        return PluginExecutor(path, entry["plugin"]["profiles"])
    if dialect(bundle, name) == CUDA and wishes.device != CPU:
        return CudaExecutor(path, capacity=wishes.capacity, profile=wishes.profile)
    try:
        return OnnxExecutor(path, capacity=wishes.capacity, threads=wishes.threads, profile=wishes.profile)
    except InputError as error:
        if dialect(bundle, name) != TENSORRT:
            raise
        raise InputError(
            f"the bundle {bundle.path} has no engines yet, without which its graphs do not run; build them on its "
            f"device: lensmith build {bundle.path}"
        ) from error


def _index(bundle: Bundle) -> Callable[[Grid], dict[str, NDArray[Any]]]:
    """The index inputs of the vision encoder for a grid."""
    manifest = bundle.content
    if "encoder" in manifest:
        return ArlowPlaces.from_manifest(manifest)
    merge = int(manifest["prompt"]["merge_size"])
    return lambda grid: qwen_index(grid, merge)
