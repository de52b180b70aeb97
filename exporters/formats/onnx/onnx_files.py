"""The ONNX files of a job: graphs beside their data, and what the manifest says about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ....runtimes.bundle.bundle_writer import BundleWriter
from ....runtimes.bundle.journal import Journal
from ....runtimes.engines.cuda.cuda_executor import cuda_works
from ....targets.errors import InputError
from ....targets.profile import TargetProfile
from ...checkpoint.prequantized.kept import how_made, kept_rows
from ...graphs.blocks import SourceTensor
from ...graphs.dialect import Dialect
from ...graphs.graph_files import Graph
from ...graphs.kv_cache import HALF_WIDTHS
from ...progress import Progress
from ...spec import Spec
from ...storage import weights
from ...storage.scheme import PRECISIONS, UNQUANTIZED, Policy
from ..elsewhere import Elsewhere
from ..tensorrt.limits import refuse_elsewhere
from .cuda_dialect import CudaDialect
from .ort import OrtDialect

if TYPE_CHECKING:
    from ...job import Job, Options

ORT = "ort"  # the dialect of graphs that name none


def write_graphs(job: Job, writer: BundleWriter, key: str, progress: Progress) -> None:
    """Write the graphs of a job, each a stage of its own, which `key` tells from that of another job."""
    for graph in job.lowering.graphs(job):
        names, stage = [f"{graph.name}.onnx", f"{graph.name}.data"], f"{graph.name}-{key}"
        with writer.stage(stage, names) as done:
            if not done:
                _write_graph(job, graph, writer, stage, progress)


def _write_graph(job: Job, graph: Graph, writer: BundleWriter, key: str, progress: Progress) -> None:
    data = writer.add(f"{graph.name}.data")
    tensors, size = weights.layout(graph, job.checkpoint)
    total, done = sum(each.tensor.size for each in tensors), 0

    def advance(elements: int) -> None:
        nonlocal done
        done += elements
        progress(graph.name, done, total)

    weights.write(tensors, size, data, writer.journal(data.name, key), advance, job.calibrated.parts)
    ir.save(weights.with_data(graph, job.checkpoint), writer.add(f"{graph.name}.onnx"))


def write_plain_graphs(job: Job, folder: Path) -> None:
    """Write the graphs of a job into any folder, from the start."""
    for graph in job.lowering.graphs(job):
        tensors, size = weights.layout(graph, job.checkpoint)
        journal = Journal(folder / "journal", graph.name)
        weights.write(tensors, size, folder / f"{graph.name}.data", journal, parts=job.calibrated.parts)
        ir.save(weights.with_data(graph, job.checkpoint), folder / f"{graph.name}.onnx")


def precision(job: Job, _: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """How each source tensor is stored, by name."""
    for graph in job.graphs:
        for source in graph.sources:
            scheme = UNQUANTIZED if source.matrix is None else source.matrix.scheme
            parameters = job.checkpoint.tensors[source.name].size
            stored = sum(weights.stored_bytes(parameter) for parameter in source.parameters)
            how = f", {_how_made(job, source)}" if scheme.quantized else ""
            row = {**vars(scheme), "reason": scheme.reason + how, "parameters": parameters, "bytes": stored}
            yield source.name, row


def _how_made(job: Job, source: SourceTensor) -> str:
    """How the integers of a matrix came about: by calibration, or from the checkpoint's own values."""
    assert source.matrix is not None
    tensor, known = job.checkpoint.tensors[source.name], job.calibrated.reasons.get(source.name)
    if known is not None and (job.calibrated.key or kept_rows(source.matrix, tensor) is None):
        return known
    return how_made(source.matrix, tensor)


def signature(graph: Graph) -> dict[str, Any]:
    """What the manifest says of a graph: its file, inputs and outputs."""

    def ports(values: Any) -> dict[str, Any]:
        shapes = {v.name: [d if isinstance(d, int) else str(d.value) for d in v.shape] for v in values}
        return {v.name: {"dtype": v.dtype.name, "shape": shapes[v.name]} for v in values}

    inner = graph.model.graph
    return {"file": f"{graph.name}.onnx", "inputs": ports(inner.inputs), "outputs": ports(inner.outputs)}


def signatures(job: Job) -> dict[str, Any]:
    """Of all graphs, and their dialect where it is not the first one."""
    named = {} if job.target.dialect == ORT else {"dialect": job.target.dialect}
    return {graph.name: {**signature(graph), **named} for graph in job.graphs}


def dialect(target: TargetProfile, _: str, __: Spec) -> Dialect:
    """The operators of ONNX Runtime on the CPU, or on NVIDIA GPUs."""
    if target.dialect == "cuda":
        return CudaDialect(activations=target.activations)
    return OrtDialect(accuracy_level=target.accuracy_level)


def usual_cache(policy: Policy, target: TargetProfile, spec: Spec) -> str:
    """Keys and values in 16 bits where weights have fewer, and activations more."""
    fits = spec.decoder is not None and spec.decoder.head_dim in HALF_WIDTHS
    return "float16" if fits and target.dialect == ORT and policy.precision.decoder <= 8 else "float"


def refuse(options: Options, target: TargetProfile) -> None:
    """An InputError for weights that ONNX Runtime, or the target, has no products for."""
    refuse_elsewhere(options, target)
    if options.kv_cache == "float16" and target.dialect != ORT:
        raise InputError(
            f"a KV cache of the target {target.name} has the type of its activations; leave out --kv-cache float16"
        )
    if options.precision in target.lacks:
        others = (name for name, precision in PRECISIONS.items() if not precision.float8)
        allowed = ", ".join(name for name in others if name not in target.lacks)
        raise InputError(
            f"the target {target.name} has no products with {options.precision}; expected --precision {allowed}"
        )


def no_replay(job: Job) -> Elsewhere | None:
    """Why golden traces cannot be replayed where an ONNX bundle is built: ONNX Runtime has no bfloat16 on the CPU."""
    here = job.target.activations != "bfloat16" or cuda_works()
    return None if here else Elsewhere("bfloat16 runs on its GPU alone")


def decoder_bits(job: Job) -> float:
    """Bits of a weight of the decoder's matrices, without those of their scales."""
    return float(job.policy.precision.decoder)
