"""What a user should know about a bundle before it is built: nothing that stops the work."""

from __future__ import annotations

from collections.abc import Iterator

from .job import Job

FEW_BITS = 4  # below, rounding to nearest costs answers: README, "Calibration"


def notes(job: Job) -> Iterator[str]:
    """One sentence for each, with what to do."""
    if not job.calibrated.evidence and job.lowering.bits(job) < FEW_BITS:
        yield (
            f"{job.options.precision} rounds to so few levels that it wants samples: "
            f"add --calibrate {job.lowering.calibration}"
        )
    yield from job.lowering.notes(job)
