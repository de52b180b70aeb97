"""Samples made ready for a model: with its template and image processing, and its own answers where none are given."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...exporters.formats.onnx.onnx_files import signature
from ...exporters.job import Job
from ...exporters.progress import Progress
from ...exporters.prompt_files import chat_template
from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.prompt.requests import user_message
from ...targets.errors import InputError
from ..calibration_options import CalibrationOptions
from ..layerwise.familiarity import familiarity
from ..layerwise.float_model import FloatModel
from ..layerwise.prepared_samples import (
    IMAGE,
    Picture,
    Sample,
    SampleBuilder,
)
from .builtin.kinds import Ways
from .calibration_samples import (
    SampleSet,
    case_key,
    choose_samples,
    picture_count,
)
from .own_answers import Wording, own_answers
from .sample_variety import monotony

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Samples ready for the model."""

    chosen: SampleSet
    calibrated: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    foreign: tuple[Sample, ...]
    pictures: Mapping[str, Picture]
    wording: Wording
    warnings: tuple[str, ...] = ()  # of what makes them less fit
    strange: bool = False  # whether they are foreign to the model, so that nothing can be learned from them

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
            **({"warnings": [*self.warnings]} if self.warnings else {}),
        }


def open_samples(
    job: Job,
    options: CalibrationOptions,
    scratch: Path,
    progress: Progress = lambda *_: None,
    *,
    judged: bool = True,
) -> Samples:
    """Read, split and prepare the samples; those without an answer get the model's own.

    Without judgement those that are held out are left out.
    """
    builder, wording = prompts_of(job), options.wording
    chosen = choose_samples(options.samples, scratch, limit=options.limit, seed=options.seed,
                            ways=_ways(builder), only=options.only_samples, fits=builder.fits)  # fmt: skip
    if not judged:
        chosen = replace(chosen, held_out=(), foreign=())
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
    prompts, pictures = builder.prompts, builder.images.takes_images
    tools = "tools" in prompts.template.words.variables
    try:
        prompts.render([user_message("")], continue_final_message=True)
    except InputError:
        return Ways(tools, free=False, pictures=pictures)
    return Ways(tools, pictures=pictures)


def prompts_of(job: Job) -> SampleBuilder:
    """What makes samples of questions, as the bundle of a job would."""
    manifest = {**job.sections, "graphs": {graph.name: signature(graph) for graph in job.graphs}}
    return SampleBuilder(inputs_of(manifest), chat_template(job.checkpoint), job.tokenizer.library)


def look_through(model: FloatModel, samples: Samples, consequence: str) -> Samples:
    """Samples with what makes them less fit, of which a warning is logged: foreign words, and all alike.

    `consequence` is what is done with foreign samples.
    """
    source, every = samples.chosen.source, (*samples.calibrated, *samples.held_out)
    given = [sample for sample in every if sample.given]
    others = [sample for sample in (*every, *samples.foreign) if not sample.given]
    told = [*monotony(samples.chosen.own, source)]
    strange = familiarity(model, given, others, samples.pictures).strange if given else None
    if strange:
        told.append(f"{source} is foreign to the model, and {consequence}: {strange}; "
                    "calibrate on what this model will be asked, with its own vocabulary and template")  # fmt: skip
    for sentence in told:
        log.warning(sentence)
    return replace(samples, warnings=tuple(told), strange=strange is not None)
