"""What a bundle was exported with, as the job that would export it again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ...runtimes.bundle.opening import Bundle
from ..job import Job, Options, Settled
from ..pipeline import prepare

OPEN = ("format", "precision")  # that every export says
USUAL = Settled()


def job_of(bundle: Bundle, checkpoint: Path, adapter: Path | None = None) -> Job:
    """The prepared job of a bundle; InputError where its options do not fit the checkpoint."""
    recorded = bundle.content["options"]
    chosen = {field.name: recorded[field.name] for field in fields(Options) if field.name in recorded}
    # A wish about groups is refused where there are none, and what was recorded may be what is usual.
    wished = {name: value for name, value in chosen.items() if name in OPEN or value != getattr(USUAL, name)}
    options = Options(**{**wished, "tensor_types": tuple(chosen.get("tensor_types") or ()), "kv_cache": None})
    return prepare(checkpoint, options, adapter=adapter)
