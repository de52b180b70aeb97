"""Calibration as a part of an export: samples, mixed precision, the pass through the layers, and the judgement."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..runtimes.bundle import Bundle
from ..runtimes.bundle_writer import check_new_bundle
from ..runtimes.files import disk_full_is_input
from ..runtimes.new_folder import CALIBRATION, workplace
from ..runtimes.no_images import NoImages
from ..runtimes.requests import user_message
from ..targets.errors import InputError, LensmithError, closest
from .activation_roles import choose_roles
from .builtin.kinds import Ways
from .calibration_record import record
from .calibration_samples import SampleSet, case_key, choose_samples, picture_count
from .dialects.ort import OrtDialect
from .export import chat_template, export
from .gguf.file_types import file_type
from .gguf.importance import gather
from .golden import Golden
from .job import Calibrated, Job
from .kv_cache import KvScales, make_kv_cache
from .layerwise.activations import PICTURES
from .layerwise.caches import cache_scales
from .layerwise.calibrate import Calibration, Plan
from .layerwise.candidates import nearest, stored
from .layerwise.judge import Judgement, judge, worse_groups
from .layerwise.model import FloatModel
from .layerwise.outcomes import Outcome
from .layerwise.quantizer import RECIPES
from .layerwise.samples import IMAGE, Picture, Sample, SampleBuilder, keys_of
from .layerwise.sensitivity import Sensitivity
from .layerwise.shelf import Room
from .layerwise.store import Store
from .lowering import signature
from .mixed_precision import check_budget, choose_schemes, schemes_of, sensitivities, with_policy, with_schemes
from .own_answers import Wording, own_answers
from .scheme import UNQUANTIZED, Scheme, make_policy
from .spec import ModelSpec

Progress = Callable[[str, int, int], None]  # stage, done, total
IMPORTANCE = "imatrix"  # the method of GGUF files
AUTO = "auto"
# What is tried instead of a method that was worse than rounding to nearest somewhere; behind the last one, rounding.
WEAKER = {AUTO: ("descent", "gptq", "mse"), **{method: (method, "mse") for method in RECIPES}, "mse": ("mse",)}
# Of choosing bits, when the divergence that was predicted for a limit is measured to be above it; the last one takes
# the most exact mix, so that what cannot be had is measured and not guessed.
ROUNDS = 4
VALUES = "values"  # a folder of the scratch folder
CAUTION = 0.8  # of what the last round promises for the next


@dataclass(frozen=True)
class CalibrationOptions:
    """What the user chose of calibration."""

    method: str = "descent"
    samples: Path | None = None  # None: a generated set
    limit: int = 64  # samples to calibrate on; a third as many are held out besides
    only_samples: bool = False  # without built-in ones beside them
    seed: int = 0
    budget: int | None = None  # bytes of the bundle: bits and group sizes are chosen for each matrix
    max_kl: float | None = None  # nats on held-out positions, likewise
    answer_tokens: int = Wording.tokens  # of answers that the model gives itself where samples have none; 0: no answers
    answer_temperature: float = Wording.temperature  # 0: greedily
    threads: int | None = None

    @property
    def wording(self) -> Wording:
        """How the model answers samples without an answer."""
        return Wording(self.answer_tokens, self.answer_temperature, self.seed)


@dataclass(frozen=True)
class Samples:
    """Samples ready for the model."""

    chosen: SampleSet
    calibrated: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    foreign: tuple[Sample, ...]
    pictures: Mapping[str, Picture]
    wording: Wording

    @property
    def sha256(self) -> str:
        """Of all token ids, the model's own answers among them, and of their pictures."""
        digest = hashlib.sha256()
        for sample in (*self.calibrated, *self.held_out, *self.foreign):
            digest.update(json.dumps([sample.ids.tolist(), sample.answer, sample.pictures]).encode())
        return digest.hexdigest()

    def about(self, seed: int) -> dict[str, Any]:
        """What the manifest says of them."""
        tokens = np.concatenate([sample.kinds for sample in self.calibrated])
        own = [sample for sample in (*self.calibrated, *self.held_out, *self.foreign) if sample.own]
        said = {"samples": len(own), "tokens": sum(sample.answer for sample in own), "by": str(self.wording)}
        return {
            "source": self.chosen.source,
            "sha256": self.chosen.sha256,
            "seed": seed,
            "calibrated": len(self.calibrated),
            "held_out": len(self.held_out),
            "kinds": dict(Counter(sample.task for sample in self.calibrated)),
            "foreign_kinds": dict(Counter(sample.task for sample in self.foreign)),
            "pictures": picture_count(self.chosen.calibrated),
            "image_tokens": int((tokens == IMAGE).sum()),
            "text_tokens": int((tokens != IMAGE).sum()),
            **({"own_answers": said} if own else {}),
        }


def check(job: Job, options: CalibrationOptions) -> None:
    """Raises InputError for what cannot be calibrated, before anything is written."""
    if options.only_samples and options.samples is None:
        raise InputError("--only-samples leaves built-in samples out, and no others are given; add --samples")
    if not isinstance(job.spec, ModelSpec):
        raise InputError(
            f"{job.family.name} has no decoder, and calibration judges its predictions; leave out --calibrate"
        )
    if job.options.format == "gguf":
        _check_importance(job, options)
        return
    if options.method not in WEAKER:
        raise InputError(f"unknown calibration method {options.method!r}; {closest(options.method, WEAKER)}")
    few_bits = any(scheme.quantized and scheme.bits < 8 for scheme in schemes_of(job.graphs).values())
    if not few_bits and not job.policy.kv_cache.quantized:
        raise InputError(f"precision {job.options.precision} rounds nothing that calibration could improve; use int4")
    if options.budget is not None and options.max_kl is not None:
        raise InputError("a budget and a largest KL cannot both be given; each decides the other")
    if (options.budget is not None or options.max_kl is not None) and job.asked.group_size is not None:
        raise InputError("--budget and --max-kl choose the size of groups for each matrix; leave out --group-size")
    if options.budget is not None:
        check_budget(job, options.budget)


def _check_importance(job: Job, options: CalibrationOptions) -> None:
    if options.method != IMPORTANCE or options.budget is not None or options.max_kl is not None:
        raise InputError(
            "GGUF files are calibrated by llama.cpp's quantizer with an importance matrix; "
            f"use --calibrate {IMPORTANCE} without --budget and --max-kl"
        )
    if not file_type(job.options.precision).quantizer:
        raise InputError(f"precision {job.options.precision} takes no importance matrix; use one like q4_k_m")


def with_importance(job: Job, options: CalibrationOptions, scratch: Path, progress: Progress) -> Job:
    """A GGUF job with the importance of the columns of its matrices, from samples with their images."""
    check(job, options)
    samples = open_samples(job, options, scratch, progress)
    model = float_model(job, options.threads, scratch / VALUES)
    importance = gather(
        model, samples.calibrated, samples.pictures, lambda done, total: progress("importance", done, total)
    )
    about = samples.about(options.seed)
    evidence = {"method": options.method, "samples": about, "matrices": len(importance)}
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
    seen = [samples.pictures[key] for key in keys_of(samples.calibrated)[:PICTURES]]
    roles = choose_roles(model, job, seen, lambda done, total: progress("activations", done, total))
    job = roles.job
    found: Mapping[str, Sensitivity] = {}
    if options.budget is not None or options.max_kl is not None:
        found = sensitivities(model, job, samples.calibrated, samples.pictures, progress)
    tried: dict[str, list[str]] = {}
    for method in WEAKER[options.method]:
        wanted = replace(options, method=method)
        mixed, store, outcomes, judged = _fitted(model, job, samples, found, wanted, scratch, progress)
        if not (worse_on := worse_groups(judged["calibrated"], judged["nearest"])):
            break
        tried[method] = worse_on
    about = samples.about(options.seed)
    evidence = record(method, about, outcomes, schemes_of(mixed.graphs), found, judged, roles.measured, tried)
    worse = not evidence["kept"]
    key = "" if worse else store.folder.name
    word = "rounded to nearest, which was better than calibrated" if worse else f"calibrated by {method}"
    low = {name: word for name, scheme in schemes_of(mixed.graphs).items() if scheme.bits < 8}
    if job.policy.kv_cache.quantized:
        mixed = with_cache_scales(mixed, cache_scales(model, samples.calibrated, samples.pictures))
    calibrated = Calibrated(key=key, reasons={**roles.reasons, **low}, evidence=evidence)
    return replace(
        mixed, calibrated=calibrated if worse else replace(calibrated, parts=store.parts, floats=store.floats)
    )


def _fitted(
    model: FloatModel,
    job: Job,
    samples: Samples,
    found: Mapping[str, Sensitivity],
    options: CalibrationOptions,
    scratch: Path,
    progress: Progress,
) -> tuple[Job, Store, list[Outcome], dict[str, Judgement]]:
    """Calibrate, with bits chosen anew where more divergence is measured than was predicted for a limit."""
    floor, limit = 0.0, options.max_kl
    for left in reversed(range(ROUNDS)):
        schemes = choose_schemes(model, job, found, options.budget, limit) if found else {}
        mixed = with_schemes(job, schemes) if found else job
        store, outcomes = _quantize(model, mixed, samples, options, scratch, progress)
        judged = _judge(model, mixed, store, samples, limit is not None, progress)
        measured, floor = judged["calibrated"].mean_kl, judged["encoder"].mean_kl if limit is not None else 0.0
        if options.max_kl is None or limit is None or measured <= options.max_kl:
            return mixed, store, outcomes, judged
        if floor >= options.max_kl:
            raise InputError(f"the vision encoder alone, at 8 bits, is {floor:.3g} nats from the float model, and "
                             f"--max-kl is {options.max_kl:g}; raise it or use --precision fp16")  # fmt: skip
        if schemes == choose_schemes(model, job, found, None, 0.0):
            break
        limit = limit * CAUTION * (options.max_kl - floor) / (measured - floor) if left > 1 else 0.0
    raise InputError(f"a KL divergence of {options.max_kl:g} nats is not reached: the most exact mix, 8 bits in groups "
                     f"of 32, is {measured:.3g} nats from the float model, {floor:.3g} of them by the vision encoder; "
                     "raise --max-kl or use --precision fp16")  # fmt: skip


def export_calibrated(
    job: Job,
    options: CalibrationOptions,
    out: str | Path,
    progress: Progress = lambda *_: None,
    *,
    golden: Golden = "auto",
    force: bool = False,
) -> Bundle:
    """Calibrate a prepared job and write its bundle, as `export` does. An interrupted run continues when run again."""
    scratch = workplace(check_new_bundle(out, force=force), CALIBRATION)
    with disk_full_is_input(scratch), _cleared(scratch):
        prepared = with_importance if job.options.format == "gguf" else calibrate
        calibrated = prepared(job, options, scratch, progress)
    bundle = export(calibrated, out, progress, golden=golden, force=force)
    shutil.rmtree(scratch, ignore_errors=True)
    return bundle


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


def open_samples(job: Job, options: CalibrationOptions, scratch: Path, progress: Progress = lambda *_: None) -> Samples:
    """Read, split and prepare the samples; those without an answer get the model's own."""
    builder, wording = prompts_of(job), options.wording
    chosen = choose_samples(options.samples, scratch, limit=options.limit, seed=options.seed,
                            ways=_ways(builder), only=options.only_samples, fits=builder.fits)  # fmt: skip
    cases = (*chosen.calibrated, *chosen.held_out, *chosen.foreign)
    samples = [builder.build(case) for case in cases]
    room = min(builder.context, max(len(sample.ids) for sample in samples) + wording.tokens)
    answers = own_answers(job, cases, wording, scratch, context=room, threads=options.threads,
                          progress=lambda done, total: progress("answers", done, total))  # fmt: skip
    samples = [
        sample.answered(answers[key], own=True) if (key := case_key(case)) in answers else sample
        for case, sample in zip(cases, samples, strict=True)
    ]
    parts = iter(samples)
    calibrated, held_out = (tuple(islice(parts, len(part))) for part in (chosen.calibrated, chosen.held_out))
    foreign = tuple(replace(sample, foreign=True) for sample in parts)
    return Samples(chosen, calibrated, held_out, foreign, builder.pictures, wording)


def _ways(builder: SampleBuilder) -> Ways:
    """Whether a chat template knows tools, a user's message can be left open at its end, and images are taken."""
    prompts, pictures = builder.prompts, not isinstance(builder.images, NoImages)
    tools = "tools" in prompts.template.words.variables
    try:
        prompts.render([user_message("")], continue_final_message=True)
    except InputError:
        return Ways(tools, free=False, pictures=pictures)
    return Ways(tools, pictures=pictures)


def prompts_of(job: Job) -> SampleBuilder:
    """What makes samples of questions, as the bundle of a job would."""
    manifest = {**job.sections, "graphs": {graph.name: signature(graph) for graph in job.graphs}}
    return SampleBuilder(manifest, chat_template(job.checkpoint), job.tokenizer.library)


def with_cache_scales(job: Job, scales: KvScales) -> Job:
    """A job whose int8 KV cache has these scales."""
    assert isinstance(job.spec, ModelSpec)
    kv_cache = make_kv_cache(job.options.kv_cache, scales, job.spec.decoder)
    return with_policy(job, replace(job.policy, kv_cache=kv_cache))


def _quantize(
    model: FloatModel, job: Job, samples: Samples, options: CalibrationOptions, scratch: Path, progress: Progress
) -> tuple[Store, list[Outcome]]:
    schemes = schemes_of(job.graphs)
    key = _key(job, schemes, samples, options)
    store = Store(scratch / f"weights-{key}")
    prefix = job.family.prefixes.text
    calibration = Calibration(model, Plan(schemes, RECIPES[options.method]), store, prefix)
    outcomes = calibration.run(
        samples.calibrated, samples.pictures, lambda done, total: progress("calibration", done, total)
    )
    return store, outcomes


def _judge(
    model: FloatModel, job: Job, store: Store, samples: Samples, encoder: bool, progress: Progress
) -> dict[str, Judgement]:
    """Both ways to round, and, if wanted, the float model behind the rounded vision encoder."""
    schemes = schemes_of(job.graphs)
    candidates = {"nearest": nearest(model, schemes), "calibrated": stored(model, schemes, store)}
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


def _key(job: Job, schemes: Mapping[str, Scheme], samples: Samples, options: CalibrationOptions) -> str:
    """A hash of all that calibrated weights depend on."""
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in job.checkpoint.files]
    rows = {name: vars(scheme) for name, scheme in schemes.items()}
    text = json.dumps([stats, job.checkpoint.config, rows, samples.sha256, options.method], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
