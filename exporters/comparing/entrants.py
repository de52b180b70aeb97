"""From the result of one process to the entrant of a lineup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtimes.bundle.opening import Bundle, open_bundle
from ..checkpoint.folder import Checkpoint
from ..reports.lineup_records import Drop, Entrant, Measured, TaskResult
from ..reports.records import Repeated
from ..tasks.answer_metrics import score
from .contender import Assignment
from .export_command import export_command
from .layer_errors import layer_errors
from .tensor_outcomes import agreements

if TYPE_CHECKING:
    from .lineup import Group


@dataclass(frozen=True)
class Outcome:
    """What a process found, or why it failed."""

    result: dict[str, Any]
    failure: str = ""
    lacks: str = ""  # what the machine has not, in two words


def entrant(job: Assignment, outcome: Outcome, reference: Outcome, group: Group, *, several: bool) -> Entrant:
    """The record of a job; `several` models are told apart by the names of what is no bundle."""
    is_bundle = job.dtype is None and job.program is None
    bundle, found = open_bundle(job.bundle), outcome.result
    name = job.name if is_bundle or not several else f"{group.model}: {job.name}"
    compared = () if not found or job.is_reference else tuple(agreements(job.name, found.get("distributions", [])))
    errors = found.get("features") or []
    return Entrant(
        name=name,
        model=group.model,
        build=build_name(bundle) if is_bundle else job.name,
        is_bundle=is_bundle,
        size_bytes=_size(job, bundle, group.checkpoint),
        engine=found.get("engine", ""),
        measured=measured(found) if found else None,
        failure=outcome.failure,
        lacks=outcome.lacks,
        tasks=tuple(_tasks(job, found)),
        drop=_drop(job, found, reference.result),
        agreement=next((row for row in compared if row.where == "answers"), None),
        feature_error=float(np.mean(errors)) if errors else None,
        layers=layer_errors(bundle, group.checkpoint) if is_bundle and group.checkpoint and found else (),
        command=export_command(bundle, group.checkpoint) if is_bundle else "",
    )


def build_name(bundle: Bundle) -> str:
    """Format, target and precision of a bundle, with what was chosen beside them."""
    options = bundle.content["options"]
    words = [options["format"], str(bundle.content["target"]), options["precision"]]
    grouped = options["format"] != "gguf" and options["precision"].startswith("int")
    words += [f"g{options['group_size']}"] if grouped and options.get("group_size") else []
    calibration = bundle.content["evidence"].get("calibration") or {}
    return " ".join([*words, *([str(calibration["method"])] if calibration.get("method") else [])])


def measured(result: Mapping[str, Any]) -> Measured:
    """Speed and memory of a result."""
    rows = result["timings"]
    speeds = [1000 * (row["new_tokens"] - 1) / row["decode_ms"] for row in rows if row["decode_ms"]]

    def spread(name: str) -> Repeated:
        return Repeated.of([row[name] for row in rows])

    return Measured(
        result["load_ms"], spread("image_ms"), spread("vision_ms"), spread("prefill_ms"),
        Repeated.of(speeds) if speeds else None, result["peak_memory_bytes"], rows[0]["prompt_tokens"],
        rows[0]["image_tokens"], result.get("in_parts", True),
    )  # fmt: skip


def _degrees(job: Assignment, result: Mapping[str, Any]) -> list[float]:
    texts: Sequence[str] = result.get("answers") or ()
    return [score(case.metric, text, case.expected) for case, text in zip(job.cases, texts, strict=False)]


def _tasks(job: Assignment, result: Mapping[str, Any]) -> list[TaskResult]:
    found: dict[tuple[str, str], list[float]] = {}
    for case, degree in zip(job.cases, _degrees(job, result), strict=False):
        found.setdefault((case.task, case.metric), []).append(degree)
    return [TaskResult.of(task, metric, degrees) for (task, metric), degrees in found.items()]


def _drop(job: Assignment, result: Mapping[str, Any], reference: Mapping[str, Any]) -> Drop | None:
    ours, theirs = _degrees(job, result), _degrees(job, reference)
    return Drop.of(theirs, ours) if ours and theirs else None


def _size(job: Assignment, bundle: Bundle, checkpoint: Checkpoint | None) -> int:
    if job.files:
        return sum(_bytes(Path(name)) for name in job.files)
    if job.dtype is not None and checkpoint is not None:
        return sum(path.stat().st_size for path in checkpoint.files)
    return _bytes(bundle.path)


def _bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
