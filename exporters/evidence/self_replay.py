"""Runs a new bundle on its own golden traces: how it compares with PyTorch, and what it must give on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ...runtimes.bundle.opening import Bundle
from ...runtimes.engines.arithmetic import arithmetic
from ...runtimes.engines.native import wanted_kernels
from ...runtimes.engines.run_wishes import usable_device
from ...runtimes.evidence.built import (
    Built,
    Run,
    Sums,
    settings_of,
    spread,
    widest,
)
from ...runtimes.evidence.outputs import Fed, Output, outputs
from ...runtimes.evidence.replay import AgainstPyTorch, Row
from ...runtimes.evidence.traces import Traces
from ...runtimes.generation.loading import open_loaded
from ...runtimes.generation.model import Model
from ...targets.errors import CheckFailed
from .nudging import noise_of, nudged_norms, nudged_vision


@dataclass(frozen=True)
class Way:
    """How this machine may compute a bundle; `native` as of `load`."""

    native: bool | None = None
    noise: float = 0.0  # in pixels and norms, see nudging.py

    def options(self, bundle: Bundle) -> dict[str, Any]:
        """Those of `load`."""
        return {"native": self.native, "device": usable_device(bundle.manifest)}


def self_replay(bundle: Bundle, traces: Traces) -> tuple[list[Row], Built]:
    """Replay the traces with lensmith's own kernels and without, and nudged.

    The figures of the first run against PyTorch, and the record of what the bundle gives.
    """
    first, *others = _ways(noise_of(bundle))
    rows: list[Row] = []
    base = Run(_noted(replayed(bundle, traces, first), AgainstPyTorch(traces), rows))
    runs = {way: Run(replayed(bundle, traces, way)) for way in others}
    lines = {arithmetic(bundle, **way.options(bundle)): run.digests
             for way, run in {first: base, **runs}.items() if not way.noise}  # fmt: skip
    digests = {line: found for line, found in lines.items() if line is not None}
    return rows, Built(digests, base.samples, spread(base, runs.values()), settings_of(bundle))


def with_meant(built: Built, meant: Run, name: str) -> Built:
    """The record with the distance to what the weights stand for in float32 in its spread.

    Raises CheckFailed unless rounding of activations, by which runs of the bundle are apart, explains that distance.
    """
    sums = Sums()
    for key, graph in meant.graphs.items():
        value = sums.add(graph, meant.samples[key], built.samples[key])
        _refuse_beyond(value, built.spread[graph].limits()[0], key, name)
    for graph in sums.graphs:
        _refuse_beyond(sums.overall(graph), built.spread[graph].limits()[1], f"all outputs of the {graph}", name)
    return replace(built, spread={graph: widest(built.spread[graph], sums.spread(graph)) for graph in built.spread})


def _refuse_beyond(value: float, limit: float, what: str, name: str) -> None:
    if not value <= limit:
        raise CheckFailed(
            f"the graphs of {name} do not compute what their rounded weights stand for: {what} is off by {value:.3g} "
            f"of its own size with a limit of {limit:.3g}; nothing was exported: report this with the checkpoint's "
            "config.json"
        )


def _ways(noise: float) -> list[Way]:
    """As `load` does it first, which is what `lensmith verify` repeats."""
    return [Way(), *([Way(native=False)] if wanted_kernels() else []), Way(noise=noise)]


def replayed(bundle: Bundle, traces: Traces, way: Way) -> Iterator[Fed | Output]:
    """Everything that the graphs get and give in one of these ways."""
    with nudged_norms(bundle, way.noise) if way.noise else nullcontext():
        model = open_loaded(bundle, **way.options(bundle))
        vision = nudged_vision(model.vision, way.noise) if way.noise else model.vision
        if isinstance(model, Model):
            model.media.vision = vision  # for conversations
        yield from outputs(model, traces, vision)


def _noted(made: Iterator[Fed | Output], against: AgainstPyTorch, rows: list[Row]) -> Iterator[Fed | Output]:
    """Outputs as they pass, with their figures added to the rows."""
    for output in made:
        rows += against.rows(output)
        yield output
