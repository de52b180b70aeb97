"""The formats of a bundle: one row for each, with all that is asked of a format elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.evidence.replay import LLAMA_CPP, Exactness
from ...targets.errors import InputError, closest
from ...targets.profile import TargetProfile
from ..graphs.dialect import Dialect
from ..graphs.graph_files import Graph
from ..progress import Progress
from ..spec import Spec
from ..storage.scheme import Policy
from .elsewhere import Elsewhere
from .gguf import gguf_files, gguf_stored, gguf_writing
from .gguf.written_tensors import check_files
from .onnx import onnx_files
from .tensorrt import finish, limits
from .tensorrt.tensorrt_dialect import TensorRTDialect

if TYPE_CHECKING:
    from ..job import Job, Options

Stored = tuple[str, int, int]  # how a tensor is stored, its values and its bytes


@dataclass(frozen=True)
class Lowering:
    """One format: what it can do, how the files of a job are written, and what the manifest says about them."""

    write: Callable[[Job, BundleWriter, str, Progress], None]  # the third: a key of all that the files depend on
    write_plain: Callable[[Job, Path], None]  # the same files into any folder, none of them journaled
    signatures: Callable[[Job], dict[str, Any]]
    precision: Callable[[Job, Path], Iterator[tuple[str, dict[str, Any]]]]  # of the files in a folder
    bits: Callable[[Job], float]  # of a weight of the decoder's matrices
    tools: tuple[str, ...]  # packages that the files depend on
    dialect: Callable[[TargetProfile, str, Spec], Dialect] = onnx_files.dialect  # for a precision
    graphs: Callable[[Job], tuple[Graph, ...]] = lambda job: job.graphs  # that are written as ONNX
    usual_cache: Callable[[Policy, TargetProfile, Spec], str] = lambda *_: "float"  # where none is named, see KINDS
    graph_precision: Callable[[str], str] = lambda precision: precision  # of the graphs
    files: Callable[[Job], Mapping[str, Iterable[Stored]]] = lambda _: {}  # that are written beside them, by component
    finish: Callable[[Job, BundleWriter, str, dict[str, Any], Progress], dict[str, Any]] = lambda *given: given[3]
    # What cannot be had, as an InputError: before graphs are described, of a described job, and before it is written,
    # for what can be planned nonetheless.
    refuse: Callable[[Options, TargetProfile], None] = lambda *_: None
    sections: Callable[[dict[str, dict[str, Any]]], dict[str, dict[str, Any]]] = lambda made: made  # what it can take
    check: Callable[[Job], None] = lambda _: None
    ready: Callable[[Job], None] = lambda _: None
    notes: Callable[[Job], Iterable[str]] = lambda _: ()  # what a user should know besides
    # Of the proof at the export.
    no_replay: Callable[[Job], Elsewhere | None] = lambda _: None  # None: golden traces can be replayed here
    float_precision: str = "fp32"  # of a bundle without rounding
    exactness: Exactness | None = None  # of that bundle against PyTorch; None: as its noise says
    check_sample: Callable[[Job, Path], None] = lambda *_: None  # files beside graphs against the checkpoint
    check_twin: Callable[[Path, Path], None] | None = None  # a folder of floats against the bundle's, without graphs
    # What the options mean for it.
    calibration: str = "descent"  # the method where none is named
    groups: bool = True  # integers are stored in groups of a size that users choose
    own_groups: bool = False  # and those of a quantized checkpoint can be kept
    tensor_types: bool = False  # users choose the type of single tensors
    gpu: bool = False  # it is for targets with a GPU of their own
    drafts: bool = True  # draft heads can be run
    whole_rows: bool = False  # weights of 8 bits have one scale for each row


def _tensorrt(target: TargetProfile, precision: str, spec: Spec) -> Dialect:
    fused = spec.decoder is None or spec.decoder.delta_net is None
    return TensorRTDialect("float32" if precision == "fp32" else target.activations, spec.context, fused)


def _finish_tensorrt(
    job: Job, writer: BundleWriter, key: str, manifest: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    assert job.target.gpu is not None
    if limits.no_replay(job) is None:  # graphs in float32 stay as they are: they are to check the others against
        return manifest
    return finish.finish(manifest, writer, job.target.gpu, key, progress)


def _write_gguf(job: Job, writer: BundleWriter, key: str, progress: Progress) -> None:
    gguf_writing.write_files(job, writer, key, progress)
    onnx_files.write_graphs(job, writer, key, progress)


def _write_plain_gguf(job: Job, folder: Path) -> None:
    gguf_writing.write_plain(job, folder)
    onnx_files.write_plain_graphs(job, folder)


def _gguf_signatures(job: Job) -> dict[str, Any]:
    graphs = {graph.name: onnx_files.signature(graph) for graph in gguf_files.encoder_graphs(job)}
    return graphs | gguf_files.signatures(job)


TOOLS = ("lensmith", "onnx-ir", "onnxscript", "numpy")
LOWERINGS = {
    "onnx": Lowering(
        write=onnx_files.write_graphs,
        write_plain=onnx_files.write_plain_graphs,
        signatures=onnx_files.signatures,
        precision=onnx_files.precision,
        bits=onnx_files.decoder_bits,
        tools=TOOLS,
        usual_cache=onnx_files.usual_cache,
        refuse=onnx_files.refuse,
        no_replay=onnx_files.no_replay,
        own_groups=True,
    ),
    "tensorrt": Lowering(
        write=onnx_files.write_graphs,
        write_plain=onnx_files.write_plain_graphs,
        signatures=onnx_files.signatures,
        precision=onnx_files.precision,
        bits=onnx_files.decoder_bits,
        tools=TOOLS,
        dialect=_tensorrt,
        finish=_finish_tensorrt,
        refuse=limits.refuse,
        check=limits.check,
        no_replay=limits.no_replay,
        gpu=True,
        whole_rows=True,
    ),
    "gguf": Lowering(
        write=_write_gguf,
        write_plain=_write_plain_gguf,
        signatures=_gguf_signatures,
        precision=gguf_stored.precision,
        bits=gguf_files.decoder_bits,
        tools=("lensmith", "numpy", *gguf_files.TOOLS),
        graphs=gguf_files.encoder_graphs,
        graph_precision=gguf_files.encoder_precision,
        files=gguf_files.planned,
        refuse=gguf_files.refuse,
        sections=gguf_files.without_spaced_videos,
        check=gguf_files.check,
        ready=gguf_files.ready,
        notes=gguf_files.notes,
        float_precision="f32",
        exactness=LLAMA_CPP,
        check_sample=gguf_files.check_sample,
        check_twin=check_files,
        calibration="imatrix",
        groups=False,
        tensor_types=True,
        drafts=False,
    ),
}


def find_lowering(name: str) -> Lowering:
    """The format of this name; InputError for an unknown one."""
    if name not in LOWERINGS:
        raise InputError(f"unknown format {name!r}; {closest(name, LOWERINGS)}")
    return LOWERINGS[name]
