"""The evidence of a job at its export: golden traces, and the proof of its graphs and weights."""

from __future__ import annotations

import functools
from typing import Any

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.evidence.traces import Traces
from ..job import Job
from ..progress import Progress
from .golden import Golden, evidence
from .proof import prove, prove_weights


def gather_evidence(
    job: Job, writer: BundleWriter, manifest: dict[str, Any], progress: Progress, golden: Golden
) -> dict[str, Any]:
    """Where the bundle cannot be replayed, PyTorch still proves its graphs and weights; it gets no traces then."""

    def recording(threads: int | None) -> Traces:
        return job.family.record(job.checkpoint, job.spec, writer, manifest, threads=threads, progress=progress)

    proving = functools.partial(prove, job, writer, manifest)
    weighing = functools.partial(prove_weights, job, writer.partial)
    elsewhere = job.lowering.no_replay(job)
    return evidence(recording, job.parameters, writer, manifest, proving, weighing, golden=golden, elsewhere=elsewhere)
