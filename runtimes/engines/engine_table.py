"""Which engine computes a graph, and how it is opened: one row for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from msgspec import UNSET

from ...targets.errors import InputError
from ..bundle.graph_entries import GraphEntry
from ..bundle.manifest import DECODER, VISION_ENCODER
from ..bundle.opening import Bundle
from ..media.no_images import refuse
from ..media.pixels import image_spec
from ..media.places import indexing
from ..prompt.positions import NO_TOKEN
from .contract import Decoder, OpenedEngines, Vision
from .cuda.cuda_executor import CudaExecutor
from .indexed import Executor, IndexedDecoder, IndexedVision, KeptArrays
from .llamacpp.library import LlamaModel
from .llamacpp.llama_decoder import LlamaDecoder, Settings
from .llamacpp.llama_vision import LlamaVision
from .onnx.onnx_decoder import OnnxDecoder
from .onnx.onnx_executor import OnnxExecutor
from .onnx.onnx_vision import OnnxVision
from .tensorrt.tensorrt_executor import TensorRTExecutor
from .tensorrt.tensorrt_plugin import PluginExecutor

CPU, CUDA = "cpu", "cuda"
DEVICES = (CPU, CUDA)
ONNX, INDEXED, TENSORRT, PLUGIN, LLAMACPP = "onnx", "onnx-indexed", "tensorrt", "tensorrt-plugin", "llamacpp"
BY_DIALECT = {"ort": ONNX, "cuda": CUDA, "tensorrt": INDEXED}  # graphs that no one has compiled yet
KeptT = TypeVar("KeptT", bound=KeptArrays)


@dataclass(frozen=True)
class Wishes:
    """How a bundle is to be run."""

    capacity: int = 0  # tokens
    threads: int | None = None
    decode_threads: int | None = None  # of steps of a few tokens; None: as many, 0: one for each core
    chunk: int | None = None  # most tokens of a step of a prompt; None: as the manifest says
    profile: bool = False
    native: bool | None = None
    device: str | None = None  # one of DEVICES; None: what the bundle was made for
    tokens: int = 0  # a draft head knows the first so many of the vocabulary alone, where it can; 0: all


@dataclass(frozen=True)
class Opening:
    """A bundle whose graphs are opened as it is wished."""

    bundle: Bundle
    wishes: Wishes

    @cached_property
    def llama(self) -> LlamaModel:
        """The language model in llama.cpp, whose vision encoder needs it too."""
        return LlamaModel(self.bundle.graph(DECODER))

    @property
    def exact(self) -> bool:
        """Whether llama.cpp is to compute without approximations."""
        return self.bundle.manifest.options.precision == "f32"


@dataclass(frozen=True)
class Engine:
    """How an engine opens the vision encoder of a bundle, and its decoder or draft head by the name of the graph."""

    vision: Callable[[Opening], Vision]
    decoder: Callable[[Opening, str], Decoder]
    obeys: frozenset[str] = frozenset()  # those of the wishes native, profile and device that it can obey
    on_gpu: bool = False


def engine_name(entry: GraphEntry, device: str | None) -> str:
    """The engine of a graph, a key of ENGINES."""
    if entry.engine is not UNSET:
        return TENSORRT
    if entry.plugin is not UNSET:
        return PLUGIN
    if entry.file.endswith(".gguf"):
        return LLAMACPP
    return INDEXED if entry.dialect == CUDA and device == CPU else BY_DIALECT[entry.dialect]


def engines_of(bundle: Bundle, device: str | None) -> dict[str, Engine]:
    """The engines that compute a bundle, by name."""
    return {name: ENGINES[name] for graph in bundle.manifest.graphs.values() for name in [engine_name(graph, device)]}


def open_engines(bundle: Bundle, wishes: Wishes) -> OpenedEngines:
    """The two parts of a model, loaded; where it takes text alone, the first refuses images."""
    opening = Opening(bundle, wishes)
    vision: Vision = refuse
    if VISION_ENCODER in bundle.manifest.graphs:
        vision = _engine(opening, VISION_ENCODER).vision(opening)
    return OpenedEngines(vision, _engine(opening, DECODER).decoder(opening, DECODER))


def open_vision(bundle: Bundle, wishes: Wishes) -> Vision:
    """The vision encoder of a bundle, loaded."""
    opening = Opening(bundle, wishes)
    return _engine(opening, VISION_ENCODER).vision(opening)


def open_decoder(bundle: Bundle, name: str, wishes: Wishes) -> Decoder:
    """The decoder of a bundle, or its head for multi-token prediction, loaded."""
    opening = Opening(bundle, wishes)
    return _engine(opening, name).decoder(opening, name)


def chunk_of(bundle: Bundle, wishes: Wishes) -> int:
    """Most tokens of a prompt that are computed at once."""
    return wishes.chunk or bundle.manifest.options.prefill_chunk


def _engine(opening: Opening, name: str) -> Engine:
    return ENGINES[engine_name(opening.bundle.entry(name), opening.wishes.device)]


def _onnx_vision(opening: Opening) -> Vision:
    wishes, path = opening.wishes, opening.bundle.graph(VISION_ENCODER)
    return OnnxVision(path, threads=wishes.threads, profile=wishes.profile, native=wishes.native)


def _onnx_decoder(opening: Opening, name: str) -> Decoder:
    wishes = opening.wishes
    return OnnxDecoder(
        opening.bundle.graph(name),
        capacity=wishes.capacity,
        threads=wishes.threads,
        decode_threads=wishes.decode_threads,
        profile=wishes.profile,
        native=wishes.native,
        tokens=wishes.tokens,
    )


def _llama_vision(opening: Opening) -> Vision:
    manifest = opening.bundle.manifest
    return LlamaVision(
        opening.bundle.graph(VISION_ENCODER),
        opening.llama,
        image_spec(manifest),
        most_tokens=getattr(manifest.image, "tile_tokens", manifest.limits.max_image_tokens),
        threads=opening.wishes.threads,
        exact=opening.exact,
    )


def _llama_decoder(opening: Opening, _: str) -> Decoder:
    manifest, wishes = opening.bundle.manifest, opening.wishes
    chunk, threads = manifest.options.prefill_chunk, (wishes.threads, wishes.decode_threads)
    settings = Settings(wishes.capacity, chunk, *threads, exact=opening.exact)
    image_token = manifest.token_id("image_token", NO_TOKEN)
    return LlamaDecoder(opening.llama, settings, image_token_id=image_token, mrope=manifest.mrope)


def _indexed(open_executor: Callable[[Opening, str], Executor[KeptT]], *obeys: str, on_gpu: bool = True) -> Engine:
    """An engine that runs graphs of the dialects for GPUs."""

    def vision(opening: Opening) -> Vision:
        index, by_frame = indexing(opening.bundle.manifest)
        return IndexedVision(open_executor(opening, VISION_ENCODER), index, by_frame=by_frame)

    def decoder(opening: Opening, name: str) -> Decoder:
        return IndexedDecoder(open_executor(opening, name), capacity=opening.wishes.capacity)

    return Engine(vision, decoder, frozenset(obeys), on_gpu)


def _on_onnx(opening: Opening, name: str) -> OnnxExecutor:
    bundle, wishes = opening.bundle, opening.wishes
    try:
        return OnnxExecutor(
            bundle.graph(name), capacity=wishes.capacity, threads=wishes.threads, profile=wishes.profile
        )
    except InputError as error:
        if opening.bundle.entry(name).dialect != "tensorrt":
            raise
        raise InputError(
            f"the bundle {bundle.path} has no engines yet, without which its graphs do not run; build them on its "
            f"device: lensmith build {bundle.path}"
        ) from error


def _on_cuda(opening: Opening, name: str) -> CudaExecutor:
    wishes = opening.wishes
    return CudaExecutor(opening.bundle.graph(name), capacity=wishes.capacity, profile=wishes.profile)


def _on_tensorrt(opening: Opening, name: str) -> TensorRTExecutor:
    return TensorRTExecutor(opening.bundle.graph(name), opening.bundle.entry(name))


def _on_plugin(opening: Opening, name: str) -> PluginExecutor:
    plugin = opening.bundle.entry(name).plugin
    assert plugin is not UNSET
    return PluginExecutor(opening.bundle.graph(name), plugin.profiles)


ENGINES: Mapping[str, Engine] = {
    ONNX: Engine(_onnx_vision, _onnx_decoder, frozenset({"native", "profile", "device"})),
    INDEXED: _indexed(_on_onnx, "profile", "device", on_gpu=False),
    CUDA: _indexed(_on_cuda, "profile", "device"),
    TENSORRT: _indexed(_on_tensorrt),
    PLUGIN: _indexed(_on_plugin),
    LLAMACPP: Engine(_llama_vision, _llama_decoder, frozenset({"device"})),
}
