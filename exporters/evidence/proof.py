"""Proves a new bundle at its export: its graphs against PyTorch, then its weights against the checkpoint's.

Rounding hides small mistakes, so the graphs are run with float weights, which must give PyTorch's own values. What the
files of the bundle hold is then compared with these weights, tensor by tensor, and what the bundle gives with what
float graphs make of its rounded weights, keys and values. How good the rounding is, is a figure and no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.opening import Bundle
from ...runtimes.evidence.built import Run, spread
from ...runtimes.evidence.outputs import Fed, Output
from ...runtimes.evidence.replay import (
    EXACT,
    AgainstPyTorch,
    Exactness,
    Row,
    judged,
)
from ...runtimes.evidence.traces import Traces
from ...runtimes.evidence.verification import is_exact
from ...targets.errors import CheckFailed
from ..formats.lowering import find_lowering
from ..job import Job
from .constants import check_constants, of_modules
from .float_twin import FOLDER, float_job, written
from .nudging import LEAST_NOISE
from .rounded_cache import check_scales, round_cache
from .self_replay import Way, replayed
from .torch_loading import import_torch
from .written_weights import SAMPLE, check_written

# Float graphs of the trained models are off by 0.4 to 1.5 times what noise in their last bits changes.
TIMES, LEAST = 8.0, 1e-5


def prove(job: Job, writer: BundleWriter, manifest: Mapping[str, Any], traces: Traces) -> Run | None:
    """Raises CheckFailed for graphs or weights that are not the checkpoint's, with the first output or tensor.

    Gives what the weights of the bundle stand for, as its float graphs compute it; None where that is the bundle.
    """
    floats, name = float_job(job), str(job.checkpoint.path)
    expected = of_modules(job.family.modules(job.checkpoint, job.spec), import_torch()[0], job.family.prefixes)
    files = (str(entry["file"]) for entry in job.lowering.signatures(job).values())
    check_constants([writer.partial / file for file in files], expected, str(job.checkpoint.path))
    if is_exact((bundle := writer.preview(manifest)).manifest):
        _prove_graphs(bundle, traces, name)
        check_written(job, floats, writer.partial)
        return None
    with written(floats, writer, manifest) as twin:
        _prove_graphs(twin, traces, name)
        if job.lowering.check_twin is not None:
            job.lowering.check_twin(writer.partial / FOLDER, writer.partial)
            check_written(job, floats, writer.partial)
            return None
        check_written(job, floats, writer.partial, writer.partial / FOLDER)
        if job.policy.kv_cache.quantized:
            check_scales(job.policy.kv_cache.scales, writer.partial)
            round_cache(writer.partial / FOLDER, job.policy.kv_cache.scales)
        elif job.policy.kv_cache.kind == "float16":
            round_cache(writer.partial / FOLDER)
        return Run(replayed(twin, traces, Way()))


def prove_weights(job: Job, folder: Path) -> None:
    """Compares a sample of each tensor in a folder's files with the checkpoint: no PyTorch, little time and memory.

    Raises CheckFailed as `prove` does.
    """
    job.lowering.check_sample(job, folder)
    check_written(job, float_job(job), folder, every=SAMPLE)


def _prove_graphs(twin: Bundle, traces: Traces, name: str) -> None:
    """The first output beyond its limit is an error."""
    against, rows, graphs = AgainstPyTorch(traces), list[Row](), list[str]()

    def noted(made: Iterator[Fed | Output]) -> Iterator[Fed | Output]:
        for output in made:
            found = [*against.rows(output)]
            rows.extend(found)
            graphs.extend([output.graph if isinstance(output, Output) else ""] * len(found))
            yield output

    base = Run(noted(replayed(twin, traces, Way())))
    limits = _limits(twin, traces, base)
    for row, graph in zip(rows, graphs, strict=True):
        refuse(judged(row, limits.get(graph, EXACT)), name)


def _limits(twin: Bundle, traces: Traces, base: Run) -> dict[str, Exactness]:
    """By graph: how far float graphs may be from PyTorch, which follows from how far the least noise grows in them."""
    known = find_lowering(twin.manifest.options.format).exactness
    if known is not None:
        return dict.fromkeys(twin.manifest.graphs, known)
    noisy = Run(replayed(twin, traces, Way(noise=LEAST_NOISE)))
    return {graph: exactness(found.row) for graph, found in spread(base, [noisy]).items()}


def exactness(noise: float) -> Exactness:
    """What float32 graphs may differ by that change by `noise` under noise in their last bits."""
    error = min(max(TIMES * noise, LEAST), EXACT.error)
    return replace(EXACT, error=error, kl=EXACT.kl * (error / EXACT.error) ** 2)  # which grows with the square


def refuse(row: Row, name: str) -> None:
    """Raises CheckFailed for a row beyond its limit, which float graphs of `name` gave."""
    if not row.passed:
        raise CheckFailed(
            f"the graphs of {name} do not compute what PyTorch does: {row.output} ({row.case}) is the first output "
            f"that differs, {row.figure} {row.value:.3g} with a limit of {row.limit:.3g}; nothing was exported: report "
            "this with the checkpoint's config.json"
        )
