"""Which engine runs a graph of a bundle: one row for each kind of file and dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from .bundle import Bundle
from .engine import Decoder, VisionEncoder
from .images import Grid
from .indexed import Executor, IndexedDecoder, IndexedVision
from .media import Vision
from .onnx_executor import OnnxExecutor
from .places import ArlowPlaces, qwen_index
from .tensorrt import TensorRTExecutor

ORT, ENGINE = "ort", ".engine"  # a dialect, and the end of a file's name


def open_vision(bundle: Bundle, *, threads: int | None, profile: bool = False, native: bool | None = None) -> Vision:
    """The vision encoder of a bundle, loaded."""
    if dialect(bundle, "vision_encoder") == ORT:
        return VisionEncoder(bundle.graph("vision_encoder"), threads=threads, profile=profile, native=native)
    return IndexedVision(_executor(bundle, "vision_encoder", threads, profile), _index(bundle))


def open_decoder(
    bundle: Bundle,
    name: str,
    *,
    capacity: int,
    threads: int | None,
    profile: bool = False,
    native: bool | None = None,
) -> Decoder:
    """The decoder of a bundle, or its head for multi-token prediction, loaded."""
    if dialect(bundle, name) == ORT:
        return Decoder(bundle.graph(name), capacity=capacity, threads=threads, profile=profile, native=native)
    return IndexedDecoder(_executor(bundle, name, threads, profile), capacity=capacity)


def dialect(bundle: Bundle, name: str) -> str:
    """The dialect of a graph."""
    return str(bundle.manifest["graphs"].get(name, {}).get("dialect", ORT))


def _executor(bundle: Bundle, name: str, threads: int | None, profile: bool) -> Executor:
    path = bundle.graph(name)
    if path.suffix == ENGINE:
        return TensorRTExecutor(path, bundle.manifest["graphs"][name])
    return OnnxExecutor(path, threads=threads, profile=profile)


def _index(bundle: Bundle) -> Callable[[Grid], dict[str, NDArray[Any]]]:
    """The index inputs of the vision encoder for a grid."""
    manifest = bundle.manifest
    if "encoder" in manifest:
        return ArlowPlaces.from_manifest(manifest)
    merge = int(manifest["prompt"]["merge_size"])
    return lambda grid: qwen_index(grid, merge)
