"""Runs a new bundle on its own golden traces: how it compares with PyTorch, and what it must give on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtimes.arithmetic import arithmetic
from ..runtimes.backends import usable_device
from ..runtimes.built import Built, Run, spread
from ..runtimes.bundle import Bundle
from ..runtimes.engine import ImageFeatures
from ..runtimes.images import Grid, Patches
from ..runtimes.loading import open_loaded
from ..runtimes.media import Vision
from ..runtimes.model import Model
from ..runtimes.native import wanted_kernels
from ..runtimes.outputs import Fed, Output, outputs
from ..runtimes.replay import AgainstPyTorch, Row
from ..runtimes.traces import Traces


@dataclass(frozen=True)
class Way:
    """How this machine may compute a bundle; `native` as of `load`."""

    native: bool | None = None
    nudged: bool = False  # pixels are one float32 off, which is the least that other kernels change

    def options(self, bundle: Bundle) -> dict[str, Any]:
        """Those of `load`."""
        return {"native": self.native, "device": usable_device(bundle.manifest)}


def self_replay(bundle: Bundle, traces: Traces) -> tuple[list[Row], Built]:
    """Replay the traces with lensmith's own kernels and without, and with nudged pixels.

    The figures of the first run against PyTorch, and the record of what the bundle gives.
    """
    first, *others = _ways()
    rows: list[Row] = []
    base = Run(_noted(_replay(bundle, traces, first), AgainstPyTorch(traces), rows))
    runs = {way: Run(_replay(bundle, traces, way)) for way in others}
    lines = {arithmetic(bundle, **way.options(bundle)): run.digests
             for way, run in {first: base, **runs}.items() if not way.nudged}  # fmt: skip
    digests = {line: found for line, found in lines.items() if line is not None}
    return rows, Built(digests, base.samples, spread(base, runs.values()))


def _ways() -> list[Way]:
    """As `load` does it first, which is what `lensmith verify` repeats."""
    return [Way(), *([Way(native=False)] if wanted_kernels() else []), Way(nudged=True)]


def _replay(bundle: Bundle, traces: Traces, way: Way) -> Iterator[Fed | Output]:
    model = open_loaded(bundle, **way.options(bundle))
    vision = _nudged(model.vision) if way.nudged else model.vision
    if isinstance(model, Model):
        model.media.vision = vision  # for conversations
    return outputs(model, traces, vision)


def _nudged(vision: Vision) -> Vision:
    def encode(patches: Patches, grid: Grid) -> ImageFeatures:
        return vision(np.nextafter(patches, np.float32(np.inf)), grid)

    return encode


def _noted(made: Iterator[Fed | Output], against: AgainstPyTorch, rows: list[Row]) -> Iterator[Fed | Output]:
    """Outputs as they pass, with their figures added to the rows."""
    for output in made:
        rows += against.rows(output)
        yield output
