"""The main job in one place: checkpoint -> spec -> graphs -> weights -> bundle."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtimes.bundle.bundle_writer import BundleWriter
from ..runtimes.bundle.opening import Bundle, open_bundle
from ..runtimes.evidence.traces import Traces
from ..runtimes.generation.sampling import SamplingOptions
from ..runtimes.storage.files import dump_json
from ..targets.errors import InputError
from ..targets.profile import TargetProfile, load_target, target_names
from .checkpoint.depths import check_depths
from .checkpoint.folder import Checkpoint, open_checkpoint
from .checkpoint.heads import settle_head
from .checkpoint.hub import repository_of
from .checkpoint.prequantized.kept import own_groups
from .checkpoint.tokenizer_files import SourceTokenizer
from .evidence.golden import Golden, evidence
from .evidence.proof import prove, prove_weights
from .families.family import FAMILIES, Family, Spec
from .formats.lowering import find_lowering
from .graphs.kv_cache import KvScales, make_kv_cache
from .job import (
    Calibrated,
    Job,
    Options,
    Progress,
)
from .notes import notes
from .parts import parts
from .spec import ModelSpec
from .storage import weights
from .storage.scheme import PRECISIONS, make_policy

log = logging.getLogger(__name__)

__all__ = ["Calibrated", "Job", "Options", "chat_template", "export", "find_family", "prepare"]


def prepare(
    path: str | Path, options: Options, *, kv_scales: KvScales | None = None, adapter: str | Path | None = None
) -> Job:
    """Open and check a checkpoint and describe its graphs; every input error shows here, before the work starts.

    `adapter` is the folder of a peft adapter, which is merged into the weights.
    `kv_scales` are those of an int8 KV cache. A job without them can be planned, and `export` refuses it.
    """
    checkpoint = open_checkpoint(path, adapter)
    family = find_family(checkpoint)
    given, options = options, _as_stored(options, checkpoint).settled()
    target = load_target(options.target)
    lowering = find_lowering(options.format)
    _check_target(options.format, target)
    lowering.refuse(given, target)
    spec = _fit(family.describe(checkpoint.config).revised(options.revision), options, target)
    check_depths(checkpoint, spec, family.prefixes)
    if isinstance(spec, ModelSpec):
        checkpoint, spec = settle_head(checkpoint, spec, family.prefixes)
    spec = family.fit(spec, checkpoint)
    policy = make_policy(
        lowering.graph_precision(options.precision),
        group_size=options.group_size,
        symmetric=options.symmetric,
        int8_roles=target.int8_activations,
        whole_rows=lowering.whole_rows,
    )
    _refuse_idle(given, grouped=policy.grouped and options.format != "gguf" and isinstance(spec, ModelSpec))
    decoder = spec.decoder if isinstance(spec, ModelSpec) else None
    policy = replace(policy, kv_cache=make_kv_cache(options.kv_cache, kv_scales, decoder))
    dialect = lowering.dialect(target, options.precision, spec)
    graphs = family.graphs(spec, policy, dialect, dialect.opsets)
    used = [source for graph in graphs for source in graph.sources]
    weights.check_names(checkpoint, used, family.dropped(checkpoint, spec))
    tokenizer = SourceTokenizer(checkpoint)
    if isinstance(spec, ModelSpec):
        chat_template(checkpoint)
        SamplingOptions.from_generation_config(checkpoint.generation_config)
    made = family.sections(checkpoint, tokenizer, spec, options.max_pixels)
    job = Job(checkpoint, family, spec, given, options, target, policy, graphs, tokenizer, made)
    lowering.check(job)
    return job


def _as_stored(options: Options, checkpoint: Checkpoint) -> Options:
    """With the groups of the checkpoint's own integers, where the user left groups open and a bundle can have them."""
    if options.format != "onnx" or options.precision not in PRECISIONS:
        return options
    own = own_groups(checkpoint.tensors.values(), PRECISIONS[options.precision].decoder)
    if own is None:
        return options
    groups = own[0] if options.group_size is None else options.group_size
    return replace(options, group_size=groups, symmetric=own[1] if options.symmetric is None else options.symmetric)


def _check_target(name: str, target: TargetProfile) -> None:
    if (name == "tensorrt") != (target.gpu is not None):
        fitting = [each for each in target_names() if (load_target(each).gpu is not None) == (name == "tensorrt")]
        raise InputError(f"format {name!r} is not for the target {target.name!r}; expected one of {', '.join(fitting)}")


def _refuse_idle(options: Options, *, grouped: bool) -> None:
    """An InputError for wishes about groups of weights where none are stored in groups of a chosen size."""
    wishes = {"--group-size": options.group_size is not None, "--asymmetric": options.symmetric is False}
    idle = [name for name, wished in wishes.items() if wished and not grouped]
    if idle:
        raise InputError(
            f"{idle[0]} has no effect: with --format {options.format} --precision {options.precision} no matrix of a "
            "decoder is stored as integers in groups; leave it out"
        )
    if options.tensor_types and options.format != "gguf":
        raise InputError(f"--tensor-type has no effect with --format {options.format}; it is for gguf: leave it out")


def _fit(spec: Spec, options: Options, target: TargetProfile) -> Any:
    """The spec with the context that the user or the target wants."""
    wanted = options.context
    if wanted is None and target.gpu is not None and isinstance(spec, ModelSpec):
        wanted = min(spec.context, target.gpu.context)
    return spec.limited(wanted)


def find_family(checkpoint: Checkpoint) -> Family[Any]:
    """The family of a checkpoint by its model_type; InputError for an unknown one."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{checkpoint.path} has model_type {str(model_type)[:100]!r}, which lensmith cannot compile; "
            f"{_misspelt(str(model_type))}supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def _misspelt(model_type: str) -> str:
    """A question where a name can only be a typing error: other digits or words name other architectures."""
    digits = [name for name in FAMILIES if re.findall(r"\d", name) == re.findall(r"\d", model_type)]
    meant = difflib.get_close_matches(model_type.lower()[:100], digits, n=1, cutoff=0.87)
    return f"did you mean {meant[0]!r}? " if meant else ""


def export(
    job: Job,
    out: str | Path,
    progress: Progress = lambda *_: None,
    *,
    golden: Golden = "auto",
    force: bool = False,
) -> Bundle:
    """Write the bundle of a prepared job. An interrupted run resumes behind the tensors that were finished.

    A bundle that is at `out` already is an InputError, or replaced with `force` once the new one is complete.
    `golden` says whether to record golden traces from PyTorch, see `evidence` in golden.py.
    """
    if not job.policy.kv_cache.complete:
        raise InputError("--kv-cache int8 needs the keys and values of samples to scale it by: add --calibrate mse")
    lowering, key = find_lowering(job.options.format), _key(job)
    lowering.ready(job)
    for note in notes(job):
        log.warning(note)
    job.checkpoint.start_hashing()
    with BundleWriter(Path(out), force) as writer:
        lowering.write(job, writer, key, progress)
        _write_other_files(job, writer)
        manifest = lowering.finish(job, writer, key, _manifest(job, writer.partial), progress)
        traces = _evidence(job, writer, manifest, progress, golden)
        writer.close(manifest | {"evidence": {**manifest["evidence"], "golden": traces}})
    return open_bundle(out)


def _evidence(
    job: Job, writer: BundleWriter, manifest: dict[str, Any], progress: Progress, golden: Golden
) -> dict[str, Any]:
    """Where the bundle cannot be replayed, PyTorch still proves its graphs and weights; it gets no traces then."""
    elsewhere = find_lowering(job.options.format).no_replay(job)
    recording = _recording(job, writer, manifest, progress)
    proving = functools.partial(prove, job, writer, manifest)
    weighing = functools.partial(prove_weights, job, writer.partial)
    return evidence(recording, job.parameters, writer, manifest, proving, weighing, golden=golden, elsewhere=elsewhere)


def _recording(
    job: Job, writer: BundleWriter, manifest: dict[str, Any], progress: Progress
) -> Callable[[int | None], Traces]:
    """Records the golden traces of a job with a number of threads."""
    return lambda threads: job.family.record(
        job.checkpoint, job.spec, writer, manifest, threads=threads, progress=progress
    )


def _write_other_files(job: Job, writer: BundleWriter) -> None:
    if isinstance(job.spec, ModelSpec):
        _write_prompt_files(job, writer)
    if job.checkpoint.license_text:
        writer.add("LICENSE").write_text(job.checkpoint.license_text, encoding="utf-8")


def _write_prompt_files(job: Job, writer: BundleWriter) -> None:
    writer.add("tokenizer.json").write_bytes(job.tokenizer.data)
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


def _manifest(job: Job, folder: Path) -> dict[str, Any]:
    checkpoint, lowering = job.checkpoint, find_lowering(job.options.format)
    places = {"hub": checkpoint.path, "adapter_hub": checkpoint.adapter}
    hub = {key: found for key, place in places.items() if place and (found := repository_of(place))}
    return {
        "family": job.family.name,
        "source": {
            "name": hub["hub"]["repository"] if "hub" in hub else checkpoint.path.resolve().name,
            "license": checkpoint.license,
            "files": checkpoint.source_files(),
            "parameters": job.parameters,
            "dropped": job.family.dropped(checkpoint, job.spec),
            **checkpoint.changes,
            **hub,
        },
        "parts": parts(job),
        "target": job.target.name,
        "precision": dict(lowering.precision(job, folder)),
        "graphs": lowering.signatures(job),
        **job.sections,
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


def _tools(names: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}
