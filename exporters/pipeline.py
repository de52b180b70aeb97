"""The product in one place: checkpoint -> spec -> graphs -> weights -> bundle, calibrated or not, for every format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from ..runtimes.bundle.bundle_writer import BundleWriter, check_new_bundle
from ..runtimes.bundle.opening import Bundle, open_bundle
from ..targets.errors import InputError
from ..targets.profile import load_target
from .bundle_manifest import key_of, make_manifest
from .checkpoint.declared_tensors import declared
from .checkpoint.folder import open_checkpoint
from .checkpoint.named_tokens import open_source_tokenizer
from .evidence.golden import Golden
from .evidence.job_evidence import gather_evidence
from .families.families import find_family
from .fitting_options import check_target, fitted_spec, refuse_idle, with_own_groups
from .formats.lowering import find_lowering
from .graphs.kv_cache import KvScales, make_kv_cache
from .job import Calibrated, Job, Options
from .notes import notes
from .progress import Progress
from .prompt_files import check_prompt_files, write_text_files
from .storage import weights
from .storage.scheme import make_policy

log = logging.getLogger(__name__)

__all__ = ["Calibrated", "Integers", "Job", "Options", "export", "nearest", "prepare"]

# How the integers of a job are chosen: given the real path of the new bundle, the job with what to write for its
# matrices. What was needed for that may be removed at the end, when the bundle is complete.
Integers = Callable[[Job, Path, Progress], AbstractContextManager[Job]]


def prepare(
    path: str | Path,
    options: Options,
    *,
    kv_scales: KvScales | None = None,
    adapter: str | Path | None = None,
    outline: bool = False,
) -> Job:
    """Open and check a checkpoint and describe its graphs; every input error shows here, before the work starts.

    `adapter` is the folder of a peft adapter, which is merged into the weights.
    `kv_scales` are those of an int8 KV cache. A job without them can be planned, and `export` refuses it.
    `outline` takes a folder of configurations without weights as well, whose job can be planned alone.
    """
    checkpoint = open_checkpoint(path, adapter, outline=outline)
    family, lowering = find_family(checkpoint), find_lowering(options.format)
    given, options = options, with_own_groups(options, checkpoint, lowering).settled()
    target = load_target(options.target)
    check_target(options.format, target, lowering)
    lowering.refuse(given, target)
    checkpoint, spec = fitted_spec(checkpoint, family, options, target)
    policy = make_policy(
        lowering.graph_precision(options.precision),
        group_size=options.group_size,
        symmetric=options.symmetric,
        int8_roles=target.int8_activations,
        whole_rows=lowering.whole_rows,
    )
    refuse_idle(given, lowering, grouped=policy.grouped and lowering.groups and spec.decoder is not None)
    options = replace(options, kv_cache=given.kv_cache or lowering.usual_cache(policy, target, spec))
    policy = replace(policy, kv_cache=make_kv_cache(options.kv_cache, kv_scales, spec.decoder))
    dialect = lowering.dialect(target, options.precision, spec)
    graphs = family.graphs(spec, policy, dialect, dialect.opsets)
    checkpoint = declared(checkpoint, graphs, spec) if checkpoint.outline else checkpoint
    weights.check_names(checkpoint, graphs, family.dropped(checkpoint, spec))
    tokenizer = open_source_tokenizer(checkpoint)
    check_prompt_files(checkpoint, spec)
    sections = lowering.sections(family.sections(checkpoint, tokenizer, spec, options.max_pixels))
    job = Job(checkpoint, family, spec, given, options, target, lowering, policy, graphs, tokenizer, sections)
    lowering.check(job)
    return job


@contextmanager
def nearest(job: Job, _: Path, __: Progress) -> Iterator[Job]:
    """Rounding to nearest, or what the job has been given already."""
    yield job


def export(
    job: Job,
    out: str | Path,
    progress: Progress = lambda *_: None,
    *,
    golden: Golden = "auto",
    force: bool = False,
    integers: Integers = nearest,
    with_handler: bool = False,
) -> Bundle:
    """Write the bundle of a prepared job. An interrupted run resumes behind the tensors that were finished.

    A bundle that is at `out` already is an InputError, or replaced with `force` once the new one is complete.
    `golden` says whether to record golden traces from PyTorch, see `evidence` in golden.py.
    `integers` is another way to choose the integers of matrices, such as `calibrated` of calibration. `with_handler`
    adds a handler.py and a requirements.txt for Hugging Face's Inference Endpoints.
    """
    if with_handler and job.spec.decoder is None:
        raise InputError("--with-handler makes an endpoint that answers, but this model has no decoder; leave it out")
    if job.checkpoint.outline:
        raise InputError(f"{job.checkpoint.path} has no weights, which plans alone can do without; download the model")
    with integers(job, check_new_bundle(out, force=force), progress) as chosen:
        if not chosen.policy.kv_cache.complete:
            raise InputError("--kv-cache int8 needs the keys and values of samples to scale it by: add --calibrate mse")
        chosen.lowering.ready(chosen)
        for note in notes(chosen):
            log.warning(note)
        chosen.checkpoint.start_hashing()
        with BundleWriter(Path(out), force) as writer:
            _write(chosen, writer, progress, golden, with_handler)
    return open_bundle(out)


def _write(job: Job, writer: BundleWriter, progress: Progress, golden: Golden, with_handler: bool) -> None:
    key = key_of(job)
    job.lowering.write(job, writer, key, progress)
    write_text_files(job, writer, with_handler=with_handler)
    manifest = job.lowering.finish(job, writer, key, make_manifest(job, writer.partial), progress)
    traces = gather_evidence(job, writer, manifest, progress, golden)
    writer.close(manifest | {"evidence": {**manifest["evidence"], "golden": traces}})
