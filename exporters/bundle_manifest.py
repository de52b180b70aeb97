"""The manifest of a job: all that a bundle says of itself but for its evidence."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from ..runtimes.storage.files import dump_json
from .checkpoint.hub import repository_of
from .job import Job
from .parts import parts


def key_of(job: Job) -> str:
    """A hash of all that the graph files depend on; source files count by name, size and time of change."""
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in job.checkpoint.files]
    keys = [job.calibrated.key, job.policy.kv_cache.digest, job.policy.int8_roles]
    text = dump_json([stats, job.checkpoint.config, vars(job.options), keys, tools(job.lowering.tools)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def make_manifest(job: Job, folder: Path) -> dict[str, Any]:
    """The manifest of a job whose graphs lie in a folder; its evidence is that of calibration alone."""
    return {
        "family": job.family.name,
        "source": _source(job),
        "parts": parts(job),
        "target": job.target.name,
        "precision": dict(job.lowering.precision(job, folder)),
        "graphs": job.lowering.signatures(job),
        **job.sections,
        "generation": job.checkpoint.generation_config,
        "evidence": {"calibration": job.calibrated.evidence} if job.calibrated.evidence else {},
        "tools": tools(job.lowering.tools),
        "options": {
            **vars(job.options),
            "revision": job.spec.revision,
            "prefill_chunk": job.target.prefill_chunk,
            "cpu_features": list(job.target.cpu_features),
        },
    }


def _source(job: Job) -> dict[str, Any]:
    """Where the weights come from, and what became of them on the way."""
    checkpoint = job.checkpoint
    places = {"hub": checkpoint.path, "adapter_hub": checkpoint.adapter}
    hub = {key: found for key, place in places.items() if place and (found := repository_of(place))}
    return {
        "name": hub["hub"]["repository"] if "hub" in hub else checkpoint.path.resolve().name,
        "license": checkpoint.license,
        "files": checkpoint.source_files(),
        "parameters": job.parameters,
        "dropped": job.family.dropped(checkpoint, job.spec),
        **checkpoint.changes,
        **hub,
    }


def tools(names: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}
