"""Proves a new bundle at its export: its graphs against PyTorch, then its weights against the checkpoint's.

Rounding hides small mistakes, so the graphs are run with float weights, which must give PyTorch's own values. What the
files of the bundle hold is then compared with these weights, tensor by tensor, and what the bundle gives with what
float graphs make of its rounded weights, keys and values. How good the rounding is, is a figure and no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runtimes.backends import CPU
from ..runtimes.built import Run
from ..runtimes.bundle import Bundle
from ..runtimes.bundle_writer import BundleWriter
from ..runtimes.loading import open_loaded
from ..runtimes.outputs import outputs
from ..runtimes.replay import EXACT, LLAMA_CPP, AgainstPyTorch, Exactness, Row, judged
from ..runtimes.traces import Traces
from ..runtimes.verify import is_exact
from ..targets.errors import CheckFailed
from .float_twin import FOLDER, float_job, written
from .gguf.written_tensors import check_files
from .job import Job
from .rounded_cache import check_scales, round_cache
from .written_weights import check_written


def prove(job: Job, writer: BundleWriter, manifest: Mapping[str, Any], traces: Traces) -> Run | None:
    """Raises CheckFailed for graphs or weights that are not the checkpoint's, with the first output or tensor.

    Gives what the weights of the bundle stand for, as its float graphs compute it; None where that is the bundle.
    """
    floats, name = float_job(job), str(job.checkpoint.path)
    if is_exact(manifest):
        _prove_graphs(writer.preview(manifest), traces, EXACT, name)
        check_written(job, floats, writer.partial)
        return None
    with written(floats, writer, manifest) as twin:
        if job.options.format == "gguf":
            _prove_graphs(twin, traces, LLAMA_CPP, name)
            check_files(writer.partial / FOLDER, writer.partial)
            check_written(job, floats, writer.partial)
            return None
        _prove_graphs(twin, traces, EXACT, name)
        check_written(job, floats, writer.partial, writer.partial / FOLDER)
        if job.policy.kv_cache.quantized:
            check_scales(job.policy.kv_cache.scales, writer.partial)
            round_cache(job.policy.kv_cache.scales, writer.partial / FOLDER)
        return Run(outputs(open_loaded(twin, device=CPU), traces))


def _prove_graphs(twin: Bundle, traces: Traces, limits: Exactness, name: str) -> None:
    model, against = open_loaded(twin, device=CPU), AgainstPyTorch(traces)
    for output in outputs(model, traces):
        for row in against.rows(output):
            refuse(judged(row, limits), name)


def refuse(row: Row, name: str) -> None:
    """Raises CheckFailed for a row beyond its limit, which float graphs of `name` gave."""
    if not row.passed:
        raise CheckFailed(
            f"the graphs of {name} do not compute what PyTorch does: {row.output} ({row.case}) is the first output "
            f"that differs, {row.figure} {row.value:.3g} with a limit of {row.limit:.3g}; nothing was exported: report "
            "this with the checkpoint's config.json"
        )
