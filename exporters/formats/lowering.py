"""The formats of a bundle: one row for each, with how the files of a job are written and what the manifest says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.engines.cuda.cuda_executor import cuda_works
from ...targets.errors import InputError, closest
from ...targets.profile import TargetProfile
from ..checkpoint.prequantized.kept import how_made, kept_rows
from ..families.family import Spec
from ..graphs.blocks import Dialect, Source
from ..graphs.graph_files import Graph
from ..job import Job, Options, Progress
from ..spec import ModelSpec
from ..storage import weights
from ..storage.scheme import PRECISIONS, UNQUANTIZED
from .elsewhere import Elsewhere
from .gguf import gguf_files as gguf
from .onnx.cuda_dialect import CudaDialect
from .onnx.ort import OrtDialect
from .tensorrt import finish, limits
from .tensorrt.tensorrt_dialect import TensorRTDialect

TOOLS = ("lensmith", "onnx-ir", "onnxscript", "numpy")
ORT = "ort"  # the dialect of graphs that name none


def _write_graphs(job: Job, writer: BundleWriter, key: str, progress: Progress) -> None:
    for graph in find_lowering(job.options.format).graphs(job):
        names, stage = [f"{graph.name}.onnx", f"{graph.name}.data"], f"{graph.name}-{key}"
        with writer.stage(stage, names) as done:
            if not done:
                _write_graph(job, graph, writer, stage, progress)


def _write_graph(job: Job, graph: Graph, writer: BundleWriter, key: str, progress: Progress) -> None:
    data = writer.add(f"{graph.name}.data")
    jobs, size = weights.plan(graph, job.checkpoint, data.name)
    total, done = sum(item.tensor.size for item in jobs), 0

    def advance(elements: int) -> None:
        nonlocal done
        done += elements
        progress(graph.name, done, total)

    weights.write(jobs, size, data, writer.journal(data.name, key), advance, job.calibrated.parts)
    ir.save(graph.model, writer.add(f"{graph.name}.onnx"))


def _precision(job: Job, _: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for graph in job.graphs:
        for source in graph.sources:
            scheme = UNQUANTIZED if source.matrix is None else source.matrix.scheme
            parameters = job.checkpoint.tensors[source.name].size
            stored = sum(weights.stored_bytes(parameter) for parameter in source.parameters)
            how = f", {_how_made(job, source)}" if scheme.quantized else ""
            row = {**vars(scheme), "reason": scheme.reason + how, "parameters": parameters, "bytes": stored}
            yield source.name, row


def _how_made(job: Job, source: Source) -> str:
    """How the integers of a matrix came about: by calibration, or from the checkpoint's own values."""
    assert source.matrix is not None
    tensor, known = job.checkpoint.tensors[source.name], job.calibrated.reasons.get(source.name)
    if known is not None and (job.calibrated.key or kept_rows(source.matrix, tensor) is None):
        return known
    return how_made(source.matrix, tensor)


def signature(graph: Graph) -> dict[str, Any]:
    """What the manifest says of a graph: its file, inputs and outputs."""

    def ports(values: Any) -> dict[str, Any]:
        return {v.name: {"dtype": v.dtype.name, "shape": [_dim(d) for d in v.shape]} for v in values}

    inner = graph.model.graph
    return {"file": f"{graph.name}.onnx", "inputs": ports(inner.inputs), "outputs": ports(inner.outputs)}


def _signatures(job: Job) -> dict[str, Any]:
    """Of all graphs, and their dialect where it is not the first one."""
    named = {} if job.target.dialect == ORT else {"dialect": job.target.dialect}
    return {graph.name: {**signature(graph), **named} for graph in job.graphs}


def _dim(dimension: Any) -> int | str:
    return dimension if isinstance(dimension, int) else str(dimension.value)


def _ort(target: TargetProfile, precision: str, spec: Spec) -> Dialect:
    if target.dialect == "cuda":
        return CudaDialect(activations=target.activations)
    return OrtDialect(accuracy_level=target.accuracy_level)


@dataclass(frozen=True)
class Lowering:
    """One format: how the files of a job are written, and what the manifest says about them."""

    write: Callable[[Job, BundleWriter, str, Progress], None]  # the third: a key of all that the files depend on
    signatures: Callable[[Job], dict[str, Any]]
    precision: Callable[[Job, Path], Iterator[tuple[str, dict[str, Any]]]]  # of the files in a folder
    check: Callable[[Job], None] = lambda _: None  # raises InputError
    ready: Callable[[Job], None] = lambda _: None  # raises InputError for what cannot be written as it is, only planned
    refuse: Callable[[Options, TargetProfile], None] = lambda *_: None  # raises InputError before graphs are described
    dialect: Callable[[TargetProfile, str, Spec], Dialect] = _ort  # for a precision
    finish: Callable[[Job, BundleWriter, str, dict[str, Any], Progress], dict[str, Any]] = lambda *given: given[3]
    no_replay: Callable[[Job], Elsewhere | None] = lambda _: None  # None: golden traces can be replayed here
    whole_rows: bool = False  # weights of 8 bits have one scale for each row
    graphs: Callable[[Job], tuple[Graph, ...]] = lambda job: job.graphs  # that are written as ONNX
    graph_precision: Callable[[str], str] = lambda precision: precision  # of the graphs
    tools: tuple[str, ...] = TOOLS


def _refuse(options: Options, target: TargetProfile) -> None:
    """An InputError for weights that ONNX Runtime, or the target, has no products for."""
    limits.refuse_elsewhere(options, target)
    if options.precision in target.lacks:
        others = (name for name, precision in PRECISIONS.items() if not precision.float8)
        allowed = ", ".join(name for name in others if name not in target.lacks)
        raise InputError(
            f"the target {target.name} has no products with {options.precision}; expected --precision {allowed}"
        )


def _no_replay(job: Job) -> Elsewhere | None:
    """Why golden traces cannot be replayed where an ONNX bundle is built: ONNX Runtime has no bfloat16 on the CPU."""
    here = job.target.activations != "bfloat16" or cuda_works()
    return None if here else Elsewhere("bfloat16 runs on its GPU alone")


def _tensorrt(target: TargetProfile, precision: str, spec: Spec) -> Dialect:
    fused = not isinstance(spec, ModelSpec) or spec.decoder.delta_net is None
    return TensorRTDialect("float32" if precision == "fp32" else target.activations, spec.context, fused)


def _finish_tensorrt(
    job: Job, writer: BundleWriter, key: str, manifest: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    assert job.target.gpu is not None
    if limits.no_replay(job) is None:  # graphs in float32 stay as they are: they are to check the others against
        return manifest
    return finish.finish(manifest, writer, job.target.gpu, key, progress)


def _write_gguf(job: Job, writer: BundleWriter, key: str, progress: Progress) -> None:
    gguf.write_files(job, writer, key, progress)
    _write_graphs(job, writer, key, progress)


LOWERINGS = {
    "onnx": Lowering(_write_graphs, _signatures, _precision, refuse=_refuse, no_replay=_no_replay),
    "tensorrt": Lowering(
        _write_graphs,
        _signatures,
        _precision,
        check=limits.check,
        refuse=limits.refuse,
        dialect=_tensorrt,
        finish=_finish_tensorrt,
        no_replay=limits.no_replay,
        whole_rows=True,
    ),
    "gguf": Lowering(
        _write_gguf,
        lambda job: {graph.name: signature(graph) for graph in gguf.encoder_graphs(job)} | gguf.signatures(job),
        gguf.precision,
        gguf.check,
        gguf.ready,
        gguf.refuse,
        graphs=gguf.encoder_graphs,
        graph_precision=gguf.encoder_precision,
        tools=("lensmith", "numpy", *gguf.TOOLS),
    ),
}


def find_lowering(name: str) -> Lowering:
    """The format of this name; InputError for an unknown one."""
    if name not in LOWERINGS:
        raise InputError(f"unknown format {name!r}; {closest(name, LOWERINGS)}")
    return LOWERINGS[name]
