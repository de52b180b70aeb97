"""From the results of all contenders to one report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...runtimes.bundle.calibration_evidence import CalibrationEvidence
from ...runtimes.bundle.opening import Bundle
from ...runtimes.process.core_limits import available_cores
from ..checkpoint.folder import Checkpoint
from ..families.families import find_family
from ..reports.records import (
    HISTOGRAM_EDGES,
    Agreement,
    Contender,
    Repeated,
    Report,
    TaskScore,
    Workload,
)
from ..storage.sizes import components
from ..tasks.answer_metrics import score
from .cases import Case
from .contender import Assignment
from .machine import environment, load_average

Result = dict[str, Any]  # of one contender's process


def precision_name(bundle: Bundle) -> str:
    """What a bundle was exported as ("int4")."""
    return bundle.manifest.options.precision


def assemble(
    bundle: Bundle,
    checkpoint: Checkpoint,
    jobs: Sequence[Assignment],
    results: Sequence[Result],
    *,
    samples: str,
    command: str,
    calibration: CalibrationEvidence | None,
) -> Report:
    """The report of finished contenders: the reference first, the bundle last."""
    family = find_family(checkpoint)
    parts = components(bundle, checkpoint, family.prefixes)
    contenders = [_contender(job, result) for job, result in zip(jobs, results, strict=True)]
    manifest = bundle.manifest
    return Report(
        model=manifest.source.name,
        family=manifest.family,
        precision=precision_name(bundle),
        parameters=manifest.source.parameters,
        bundle_bytes=sum(part.bundle_bytes for part in parts),
        source_bytes=sum(part.source_bytes for part in parts),
        contenders=(contenders[-1], *contenders[:-1]),
        workload=_workload(jobs[-1], results[-1]),
        components=parts,
        reference=jobs[0].name,
        agreement=tuple(_agreement(jobs, results)),
        perplexity={job.name: _perplexity(result) for job, result in zip(jobs, results, strict=True)},
        tasks=tuple(_scores(jobs[0].cases, results[0]["answers"], results[-1]["answers"])),
        samples=samples,
        environment=environment(),
        command=command,
        notes=tuple(_notes(jobs)),
        calibration=calibration,
    )


def _contender(job: Assignment, result: Result) -> Contender:
    rows = result["timings"]

    def spread(name: str) -> Repeated:
        return Repeated.of([row[name] for row in rows])

    speeds = [1000 * (row["new_tokens"] - 1) / row["decode_ms"] for row in rows]
    return Contender(
        job.name, result["engine"], job.dtype is None, result["load_ms"], spread("image_ms"), spread("vision_ms"),
        spread("prefill_ms"), Repeated.of(speeds), result["peak_memory_bytes"],
    )  # fmt: skip


def _workload(job: Assignment, result: Result) -> Workload:
    width, height = 0, 0
    if job.image:
        with Image.open(job.image) as image:
            width, height = image.size
    timing = result["timings"][0]
    return Workload(
        Path(job.image).name or "no image", width, height, job.prompt, timing["prompt_tokens"], timing["image_tokens"],
        job.decode_steps, job.repeats, job.threads,
    )  # fmt: skip


def _agreement(jobs: Sequence[Assignment], results: Sequence[Result]) -> Iterator[Agreement]:
    for job, result in zip(jobs[1:], results[1:], strict=True):
        yield from agreements(job.name, result["distributions"])


def agreements(contender: str, distributions: Sequence[Result]) -> Iterator[Agreement]:
    """How a contender's distributions differ from the reference's, over answers and over prompts."""
    for where in ("answers", "prompts"):
        kl = [value for row in distributions for value in row[where]["kl"]]
        top1 = [same for row in distributions for same in row[where]["top1"]]
        if kl:
            yield _summary(contender, where, np.array(kl), float(np.mean(top1)))


def _summary(contender: str, where: str, kl: np.ndarray[Any, Any], top1: float) -> Agreement:
    inside = np.clip(kl, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    histogram = tuple(int(count) for count in np.histogram(inside, HISTOGRAM_EDGES)[0])
    middle, high = (float(value) for value in np.quantile(kl, (0.5, 0.99)))
    return Agreement(contender, where, len(kl), float(kl.mean()), middle, high, float(kl.max()), top1, histogram)


def _perplexity(result: Result) -> float:
    losses = [loss for row in result["distributions"] for loss in row["losses"]]
    return math.exp(min(sum(losses) / len(losses), 700.0))


def _scores(cases: Sequence[Case], reference: Sequence[str], bundle: Sequence[str]) -> Iterator[TaskScore]:
    """How right the answers were by task; nothing where none were asked for."""
    outcomes: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for case, *texts in zip(cases, reference, bundle, strict=False):
        first, second = (score(case.metric, text, case.expected) for text in texts)
        outcomes.setdefault((case.task, case.metric), []).append((first, second))
    for (task, metric), pairs in outcomes.items():
        yield TaskScore.of(task, metric, pairs)


def _notes(jobs: Sequence[Assignment]) -> Iterator[str]:
    yield "All contenders get the same token ids and the same patches, cut by lensmith's image processing."
    if (busy := load_average()) > 0.5 * available_cores() + jobs[0].threads:
        yield f"Other programs were running (load average {busy:.1f}): the times are longer than on an idle machine."
