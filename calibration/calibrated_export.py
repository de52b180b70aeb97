"""Calibration as a part of an export: samples, mixed precision, the pass through the layers, and the judgement."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..exporters.formats.onnx.ort import OrtDialect
from ..exporters.graphs.kv_cache import KvScales, make_kv_cache
from ..exporters.job import Calibrated, Job
from ..exporters.pipeline import Integers
from ..exporters.progress import Progress
from ..exporters.spec import ModelSpec
from ..exporters.storage.scheme import UNQUANTIZED, Scheme, make_policy
from ..runtimes.storage.files import disk_full_is_input
from ..runtimes.storage.new_folder import CALIBRATION, workplace
from ..targets.errors import InputError, LensmithError
from .activation_roles import choose_roles
from .calibration_check import IMPORTANCE, METHODS, check
from .calibration_options import CalibrationOptions
from .calibration_record import record
from .importance import gather
from .layerwise.activations import PICTURES
from .layerwise.caches import cache_scales
from .layerwise.candidates import nearest, stored
from .layerwise.float_model import FloatModel
from .layerwise.judge import Judgement, judge
from .layerwise.layer_pass import Calibration, PassPlan
from .layerwise.prepared_samples import keys_of
from .layerwise.sensitivity import Sensitivity
from .layerwise.shelf import Room
from .layerwise.stage_quantizer import RECIPES
from .layerwise.store import Store
from .layerwise.verdict import (
    NEAREST,
    SEARCHED,
    Verdict,
    choose,
)
from .mixed_precision import (
    choose_schemes,
    schemes_of,
    sensitivities,
    with_policy,
    with_schemes,
)
from .samples.sample_preparation import Samples, look_through, open_samples

# Of choosing bits, when the divergence that was predicted for a limit is measured to be above it; the last one takes
# the most exact mix, so that what cannot be had is measured and not guessed.
ROUNDS = 4
VALUES = "values"  # a folder of the scratch folder
CAUTION = 0.8  # of what the last round promises for the next


def with_importance(job: Job, options: CalibrationOptions, scratch: Path, progress: Progress) -> Job:
    """A GGUF job with the importance of the columns of its matrices, from samples with their images."""
    check(job, options)
    samples = open_samples(job, options, scratch, progress, judged=False)
    model = float_model(job, options.threads, scratch / VALUES)
    samples = look_through(model, samples, "their importance is taken nonetheless")
    importance = gather(
        model, samples.calibrated, samples.pictures, lambda done, total: progress("importance", done, total)
    )
    about = samples.about(options.seed)
    evidence = {"method": options.method, "asked": options.asked, "samples": about, "matrices": len(importance)}
    calibrated = Calibrated(key=str(about["sha256"]), evidence=evidence, importance=importance)
    return replace(job, calibrated=calibrated)


def calibrate(job: Job, options: CalibrationOptions, scratch: Path, progress: Progress) -> Job:
    """Calibrate a prepared job in a scratch folder, where an interrupted run continues.

    Returns the job with the final schemes of all matrices and what to write for them: rounding to nearest, where that
    is better on the held-out samples.
    """
    check(job, options)
    samples = open_samples(job, options, scratch, progress)
    model = float_model(job, options.threads, scratch / VALUES)
    samples = look_through(model, samples, "weights are rounded to nearest")
    seen = [samples.pictures[key] for key in keys_of(samples.calibrated)[:PICTURES]]
    roles = choose_roles(model, job, seen, lambda done, total: progress("activations", done, total))
    job = roles.job
    found: Mapping[str, Sensitivity] = {}
    if options.budget is not None or options.max_kl is not None:
        found = sensitivities(model, job, samples.calibrated, samples.pictures, progress)
    mixed, made = _fitted(model, job, samples, found, options, scratch, progress)
    schemes = schemes_of(mixed.graphs)
    evidence = {
        **record(made, samples.about(options.seed), schemes, found, roles.measured),
        "asked": options.asked,
    }
    low = {name: _word(made, name, samples.strange) for name, scheme in schemes.items() if scheme.bits < 8}
    if job.policy.kv_cache.quantized:
        mixed = with_cache_scales(mixed, cache_scales(model, samples.calibrated, samples.pictures))
    calibrated = Calibrated(reasons={**roles.reasons, **low}, evidence=evidence)
    if made.kept and (store := made.store):
        calibrated = replace(calibrated, key=store.folder.name, parts=store.parts, floats=store.floats)
    return replace(mixed, calibrated=calibrated)


def _word(made: Verdict, name: str, strange: bool) -> str:
    """What became of a matrix below 8 bits."""
    if strange:
        return "rounded to nearest, as the samples are foreign to the model"
    own = made.methods.get(name, made.method)
    if not made.kept or own == "rtn":
        return "rounded to nearest, which was better than calibrated"
    return f"calibrated by {own}"


def _fitted(
    model: FloatModel,
    job: Job,
    samples: Samples,
    found: Mapping[str, Sensitivity],
    options: CalibrationOptions,
    scratch: Path,
    progress: Progress,
) -> tuple[Job, Verdict]:
    """Calibrate, with bits chosen anew where more divergence is measured than was predicted for a limit."""
    floor, limit = 0.0, options.max_kl
    for left in reversed(range(ROUNDS)):
        schemes = choose_schemes(model, job, found, options.budget, limit) if found else {}
        mixed = with_schemes(job, schemes) if found else job
        stores = _quantize(model, mixed, samples, options, scratch, progress)
        judged = _judge(model, mixed, stores, samples, limit is not None, progress)
        made = choose(METHODS[options.method], stores, judged)
        measured, floor = made.measured.mean_kl, judged["encoder"].mean_kl if limit is not None else 0.0
        if options.max_kl is None or limit is None or measured <= options.max_kl:
            return mixed, made
        if floor >= options.max_kl:
            raise InputError(f"the vision encoder alone, at 8 bits, is {floor:.3g} nats from the float model, and "
                             f"--max-kl is {options.max_kl:g}; raise it or use --precision fp16")  # fmt: skip
        if schemes == choose_schemes(model, job, found, None, 0.0):
            break
        limit = limit * CAUTION * (options.max_kl - floor) / (measured - floor) if left > 1 else 0.0
    raise InputError(f"a KL divergence of {options.max_kl:g} nats is not reached: the most exact mix, 8 bits in groups "
                     f"of 32, is {measured:.3g} nats from the float model, {floor:.3g} of them by the vision encoder; "
                     "raise --max-kl or use --precision fp16")  # fmt: skip


def calibrated(options: CalibrationOptions) -> Integers:
    """Chooses the integers of an export on samples. An interrupted export continues when run again."""

    @contextlib.contextmanager
    def integers(job: Job, out: Path, progress: Progress) -> Iterator[Job]:
        scratch = workplace(out, CALIBRATION)
        choose = with_importance if job.lowering.calibration == IMPORTANCE else calibrate
        with disk_full_is_input(scratch), _cleared(scratch):
            chosen = choose(job, options, scratch, progress)
        yield chosen
        shutil.rmtree(scratch, ignore_errors=True)

    return integers


@contextlib.contextmanager
def _cleared(scratch: Path) -> Iterator[None]:
    """Remove the folder behind a refusal, unless there are weights in it that another run could go on from."""
    try:
        yield
    except LensmithError:
        if not any(scratch.glob("weights-*")):
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(scratch / VALUES, ignore_errors=True)


def float_model(job: Job, threads: int | None, spilled: Path | None = None) -> FloatModel:
    """The graphs of a job in float32; values of many tokens are kept in a folder `spilled`, if there is one."""
    assert isinstance(job.spec, ModelSpec)
    dialect = OrtDialect(accuracy_level=1)
    graphs = job.family.graphs(job.spec, make_policy("fp32"), dialect, dialect.opsets)
    named = {graph.name: graph for graph in graphs}
    return FloatModel(
        job.checkpoint,
        job.spec,
        named.get("vision_encoder"),
        named["decoder"],
        named.get("mtp"),
        threads or 0,
        Room(spilled),
    )


def with_cache_scales(job: Job, scales: KvScales) -> Job:
    """A job whose int8 KV cache has these scales."""
    kv_cache = make_kv_cache(job.options.kv_cache, scales, job.spec.decoder)
    return with_policy(job, replace(job.policy, kv_cache=kv_cache))


def _quantize(
    model: FloatModel, job: Job, samples: Samples, options: CalibrationOptions, scratch: Path, progress: Progress
) -> dict[str, Store]:
    """What the method and a search of scales make, by the names of these; nothing of samples that are foreign."""
    if samples.strange:
        return {}
    schemes, method = schemes_of(job.graphs), METHODS[options.method]
    folders = {name: scratch / f"weights-{_key(job, schemes, samples, name, method)}" for name in (method, SEARCHED)}
    stores = {name: Store(folder) for name, folder in folders.items()}
    plan = PassPlan(schemes, RECIPES[method])
    calibration = Calibration(model, plan, stores[method], stores[SEARCHED], job.family.prefixes.text)
    calibration.run(
        samples.calibrated,
        samples.pictures,
        lambda done, total: progress("calibration", done, total),
        (*samples.held_out, *samples.foreign),
    )
    return stores


def _judge(
    model: FloatModel,
    job: Job,
    stores: Mapping[str, Store],
    samples: Samples,
    encoder: bool,
    progress: Progress,
) -> dict[str, Judgement]:
    """All ways to round, and, if wanted, the float model behind the rounded vision encoder."""
    schemes = schemes_of(job.graphs)
    candidates = {name: stored(model, schemes, store) for name, store in stores.items()}
    candidates[NEAREST] = nearest(model, schemes)
    if encoder:
        plain = {source.name: UNQUANTIZED for source in model.decoder.sources}
        candidates["encoder"] = nearest(model, {**schemes, **plain})
    return judge(
        model,
        (*samples.held_out, *samples.foreign),
        samples.pictures,
        candidates,
        lambda done, total: progress("judgement", done, total),
    )


def _key(job: Job, schemes: Mapping[str, Scheme], samples: Samples, *methods: str) -> str:
    """A hash of all that calibrated weights depend on."""
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in job.checkpoint.files]
    rows = {name: vars(scheme) for name, scheme in schemes.items()}
    text = json.dumps([stats, job.checkpoint.config, rows, samples.sha256, *methods], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
