"""The main job in one place: checkpoint -> spec -> graphs -> weights -> bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..runtimes.bundle import Bundle, open_bundle
from ..runtimes.bundle_writer import BundleWriter
from ..runtimes.cuda_executor import has_cuda
from ..runtimes.files import dump_json
from ..runtimes.traces import Traces
from ..targets.errors import InputError, closest
from ..targets.profile import TargetProfile, load_target, target_names
from . import weights
from .blocks import Dialect
from .checkpoint import Checkpoint, open_checkpoint
from .dialects import gguf
from .dialects.cuda import CudaDialect
from .dialects.ort import OrtDialect
from .dialects.tensorrt import TensorRTDialect
from .golden import Golden, evidence
from .graphs import Graph
from .kv_cache import KvScales, make_kv_cache
from .models import FAMILIES, Family, Spec
from .names import locate, relocate
from .scheme import PRECISIONS, UNQUANTIZED, Policy, make_policy
from .spec import ModelSpec
from .trt import finish, limits

Progress = Callable[[str, int, int], None]  # stage, done, total
TOOLS = ("lensmith", "onnx-ir", "onnxscript", "numpy")
ORT = "ort"  # the dialect of graphs that name none


@dataclass(frozen=True)
class Options:
    """What the user chose; everything that changes the bytes of a bundle."""

    format: str = "onnx"  # a row of LOWERINGS
    precision: str = "int4"
    group_size: int = 128
    symmetric: bool = True
    target: str = "cpu"
    context: int | None = None  # tokens; None: what the model was made for
    revision: str | None = None  # of the class that the checkpoint was trained with, where a family has several
    max_pixels: int | None = None  # largest image area of the bundle; None: the checkpoint's
    kv_cache: str = "float"  # or int8
    tensor_types: tuple[str, ...] = ()  # of GGUF: PATTERN=TYPE, for single tensors


@dataclass(frozen=True)
class Calibrated:
    """What calibration hands to the export. The default is rounding to nearest."""

    parts: weights.Parts = lambda *_: None  # the stored form of a tensor, where it was calibrated
    key: str = ""  # of all that the weights depend on
    reasons: Mapping[str, str] = field(default_factory=dict)  # what became of a matrix, by name
    evidence: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Any] = field(default_factory=dict)  # of GGUF: Energy by source tensor, see gguf/imatrix.py


@dataclass(frozen=True)
class Job:
    """A checkpoint with everything that was decided about it, before anything is written."""

    checkpoint: Checkpoint
    family: Family[Any]
    spec: Spec
    options: Options
    target: TargetProfile
    policy: Policy
    graphs: tuple[Graph, ...]
    calibrated: Calibrated = field(default_factory=Calibrated)

    @property
    def parameters(self) -> int:
        """Values in all source tensors that are used."""
        return sum(self.checkpoint.tensors[source.name].size for graph in self.graphs for source in graph.sources)


def prepare(path: str | Path, options: Options, *, kv_scales: KvScales | None = None) -> Job:
    """Open and check a checkpoint and describe its graphs; every input error shows here, before the work starts.

    `kv_scales` are those of an int8 KV cache. A job without them can be planned, and `export` refuses it.
    """
    checkpoint = open_checkpoint(path)
    family = find_family(checkpoint)
    target = load_target(options.target)
    lowering = find_lowering(options.format)
    _check_target(options.format, target)
    _check_precision(options.precision, target)
    lowering.refuse(options, target)
    spec = _fit(family.describe(checkpoint.config).revised(options.revision), options, target)
    spec = family.fit(spec, checkpoint)
    policy = make_policy(
        lowering.graph_precision(options.precision),
        group_size=options.group_size,
        symmetric=options.symmetric,
        int8_roles=target.int8_activations,
        whole_rows=lowering.whole_rows,
    )
    decoder = spec.decoder if isinstance(spec, ModelSpec) else None
    policy = replace(policy, kv_cache=make_kv_cache(options.kv_cache, kv_scales, decoder))
    if policy.kv_cache.quantized and options.format == "gguf":
        raise InputError(f"--kv-cache int8 is no part of {options.format} files; their runtime chooses: leave it out")
    dialect = lowering.dialect(target, options.precision, spec)
    graphs = describe_graphs(checkpoint, family, spec, policy, dialect)
    used = [source for graph in graphs for source in graph.sources]
    weights.check_names(checkpoint, used, family.dropped(checkpoint, spec))
    job = Job(checkpoint, family, spec, options, target, policy, graphs)
    sections(job)  # raises for unusable processor settings and tokens
    lowering.check(job)
    return job


def describe_graphs(
    checkpoint: Checkpoint, family: Family[Any], spec: Spec, policy: Policy, dialect: Dialect
) -> tuple[Graph, ...]:
    """The graphs of a checkpoint without weights, their sources named as the checkpoint has them."""
    found = locate(checkpoint, family.prefixes, family.aliases)
    return tuple(relocate(g, family.prefixes, found) for g in family.graphs(spec, policy, dialect, dialect.opsets))


def _check_target(name: str, target: TargetProfile) -> None:
    if (name == "tensorrt") != (target.gpu is not None):
        fitting = [each for each in target_names() if (load_target(each).gpu is not None) == (name == "tensorrt")]
        raise InputError(f"format {name!r} is not for the target {target.name!r}; expected one of {', '.join(fitting)}")


def _check_precision(precision: str, target: TargetProfile) -> None:
    if precision in target.lacks:
        others = (name for name, precision in PRECISIONS.items() if not precision.float8)  # those are for TensorRT
        allowed = ", ".join(name for name in others if name not in target.lacks)
        raise InputError(f"the target {target.name} has no kernels for {precision}; expected --precision {allowed}")


def _fit(spec: Spec, options: Options, target: TargetProfile) -> Any:
    """The spec with the context that the user or the target wants."""
    wanted = options.context
    if wanted is None and target.gpu is not None and isinstance(spec, ModelSpec):
        wanted = min(spec.context, target.gpu.context)
    return spec.limited(wanted)


def find_family(checkpoint: Checkpoint) -> Family[Any]:
    """The family of a checkpoint by its model_type; InputError for an unknown one."""
    model_type = str(checkpoint.config.get("model_type"))
    if model_type not in FAMILIES:
        raise InputError(
            f"{checkpoint.path} has model_type {model_type!r}, which lensmith cannot compile; "
            f"{closest(model_type, FAMILIES)}"
        )
    return FAMILIES[model_type]


def export(job: Job, out: str | Path, progress: Progress = lambda *_: None, *, golden: Golden = "auto") -> Bundle:
    """Write the bundle of a prepared job. An interrupted run resumes behind the tensors that were finished.

    `golden` says whether to record golden traces from PyTorch, see `evidence` in golden.py.
    """
    if not job.policy.kv_cache.complete:
        raise InputError("--kv-cache int8 needs the keys and values of samples to scale it by: add --calibrate mse")
    lowering, key = find_lowering(job.options.format), _key(job)
    job.checkpoint.start_hashing()
    with BundleWriter(Path(out)) as writer:
        lowering.write(job, writer, key, progress)
        _write_other_files(job, writer)
        manifest = lowering.finish(job, writer, key, _manifest(job, writer.partial), progress)
        traces = _evidence(job, writer, manifest, progress, golden)
        writer.close(manifest | {"evidence": {**manifest["evidence"], "golden": traces}})
    return open_bundle(out)


def _evidence(
    job: Job, writer: BundleWriter, manifest: dict[str, Any], progress: Progress, golden: Golden
) -> dict[str, Any]:
    reason = find_lowering(job.options.format).no_replay(job)
    if reason is None:
        return evidence(_recording(job, writer, manifest, progress), job.parameters, writer, manifest, golden=golden)
    if golden == "always":
        raise InputError(f"golden traces cannot be recorded: {reason}; leave out --golden always")
    return {"recorded": False, "reason": reason}


def _recording(
    job: Job, writer: BundleWriter, manifest: dict[str, Any], progress: Progress
) -> Callable[[int | None], Traces]:
    """Records the golden traces of a job with a number of threads."""
    return lambda threads: job.family.record(
        job.checkpoint, job.spec, writer, manifest, threads=threads, progress=progress
    )


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


def _write_other_files(job: Job, writer: BundleWriter) -> None:
    if isinstance(job.spec, ModelSpec):
        _write_prompt_files(job, writer)
    if job.checkpoint.license_text:
        writer.add("LICENSE").write_text(job.checkpoint.license_text, encoding="utf-8")


def _write_prompt_files(job: Job, writer: BundleWriter) -> None:
    tokenizer = json.loads(job.checkpoint.tokenizer_path.read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))  # half the size of the usual indentation
    writer.add("tokenizer.json").write_text(compact, encoding="utf-8")
    writer.add("chat_template.jinja").write_text(chat_template(job.checkpoint), encoding="utf-8")


def chat_template(checkpoint: Checkpoint) -> str:
    """The chat template of a checkpoint; an InputError where it has none."""
    if checkpoint.chat_template is None:
        raise InputError(
            f"{checkpoint.path} has no chat template; expected chat_template.jinja or chat_template "
            "in tokenizer_config.json: copy it from the model's repository"
        )
    return checkpoint.chat_template


def _key(job: Job) -> str:
    """A hash of all that the graph files depend on; source files count by name, size and time of change."""
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in job.checkpoint.files]
    tools = _tools(find_lowering(job.options.format).tools)
    keys = [job.calibrated.key, job.policy.kv_cache.digest, job.policy.int8_roles]
    text = dump_json([stats, job.checkpoint.config, vars(job.options), keys, tools])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sections(job: Job) -> dict[str, Any]:
    """The sections of the manifest that say how to make prompts and cut images."""
    if isinstance(job.spec, ModelSpec):
        chat_template(job.checkpoint)
    return job.family.sections(job.checkpoint, job.spec, job.options.max_pixels)


def _manifest(job: Job, folder: Path) -> dict[str, Any]:
    checkpoint, lowering = job.checkpoint, find_lowering(job.options.format)
    return {
        "family": job.family.name,
        "source": {
            "name": checkpoint.path.resolve().name,
            "license": checkpoint.license,
            "files": checkpoint.source_files(),
            "parameters": job.parameters,
            "dropped": job.family.dropped(checkpoint, job.spec),
        },
        "target": job.target.name,
        "precision": dict(lowering.precision(job, folder)),
        "graphs": lowering.signatures(job),
        **sections(job),
        "generation": checkpoint.generation_config,
        "evidence": {"calibration": job.calibrated.evidence} if job.calibrated.evidence else {},
        "tools": _tools(lowering.tools),
        "options": {
            **vars(job.options),
            "revision": getattr(job.spec, "revision", None),
            "prefill_chunk": job.target.prefill_chunk,
            "cpu_features": list(job.target.cpu_features),
        },
    }


def _precision(job: Job, _: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for graph in job.graphs:
        for source in graph.sources:
            scheme = UNQUANTIZED if source.matrix is None else source.matrix.scheme
            parameters = job.checkpoint.tensors[source.name].size
            stored = sum(weights.stored_bytes(parameter) for parameter in source.parameters)
            how = f", {job.calibrated.reasons.get(source.name, 'rounded to nearest')}" if scheme.quantized else ""
            row = {**vars(scheme), "reason": scheme.reason + how, "parameters": parameters, "bytes": stored}
            yield source.name, row


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


def _tools(names: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


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
    refuse: Callable[[Options, TargetProfile], None] = lambda *_: None  # raises InputError before graphs are described
    dialect: Callable[[TargetProfile, str, Spec], Dialect] = _ort  # for a precision
    finish: Callable[[Job, BundleWriter, str, dict[str, Any], Progress], dict[str, Any]] = lambda *given: given[3]
    no_replay: Callable[[Job], str | None] = lambda _: None  # why golden traces cannot be replayed where it is built
    whole_rows: bool = False  # weights of 8 bits have one scale for each row
    graphs: Callable[[Job], tuple[Graph, ...]] = lambda job: job.graphs  # that are written as ONNX
    graph_precision: Callable[[str], str] = lambda precision: precision  # of the graphs
    tools: tuple[str, ...] = TOOLS


def _no_replay(job: Job) -> str | None:
    """Why golden traces cannot be replayed where an ONNX bundle is built: ONNX Runtime has no bfloat16 on the CPU."""
    here = job.target.activations != "bfloat16" or has_cuda()
    return None if here else "bfloat16 runs on its GPU alone"


def _tensorrt(target: TargetProfile, precision: str, spec: Spec) -> Dialect:
    assert target.gpu is not None
    fused = not isinstance(spec, ModelSpec) or spec.decoder.delta_net is None
    return TensorRTDialect("float32" if precision == "fp32" else target.gpu.activations, spec.context, fused)


def _finish_tensorrt(
    job: Job, writer: BundleWriter, key: str, manifest: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    assert job.target.gpu is not None
    return finish.finish(manifest, writer, job.target.gpu, key, progress)


def _write_gguf(job: Job, writer: BundleWriter, key: str, progress: Progress) -> None:
    gguf.write_files(job, writer, key, progress)
    _write_graphs(job, writer, key, progress)


LOWERINGS = {
    "onnx": Lowering(_write_graphs, _signatures, _precision, refuse=limits.refuse_elsewhere, no_replay=_no_replay),
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
