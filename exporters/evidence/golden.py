"""The evidence of an export: golden traces are recorded, prove the graphs, and are replayed once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.evidence.built import (
    RECORD,
    SAMPLES,
    Run,
    write_built,
)
from ...runtimes.evidence.replay import Row, summarize
from ...runtimes.evidence.traces import (
    Traces,
)
from ...targets.errors import CheckFailed, InputError, MissingExtra
from ..formats.elsewhere import Elsewhere
from .own_traces import own_pictures, record_own
from .recording import GOLDEN, SMALL, STEPS, conversations, write
from .self_replay import self_replay, with_meant
from .torch_loading import import_torch

Golden = Literal["auto", "always", "never"]

AUTO_BYTES = 2_000_000_000  # of float32 weights; more would take away the low memory of an export
NOTHING = "nothing was compared"
WEIGHTS = "rows of each tensor were compared with the checkpoint's"


def evidence(
    recording: Callable[[int | None], Traces],
    parameters: int,
    writer: BundleWriter,
    manifest: Mapping[str, Any],
    prove: Callable[[Traces], Run | None],
    prove_weights: Callable[[], None],
    *,
    golden: Golden = "auto",
    elsewhere: Elsewhere | None = None,
) -> dict[str, Any]:
    """Record golden traces into a bundle, prove and replay it with them, and give the figures for its manifest.

    A bundle that runs `elsewhere` only is proven, and keeps no traces.

    "auto" records them when PyTorch is installed and the weights are small in float32, and else gives the reason,
    proves the weights alone and records traces of the bundle itself. "always" raises MissingExtra and InputError.
    """
    reason = _reason_against(parameters, golden)
    if reason is None:
        try:
            traces = recording(1 if parameters < SMALL else None)
            meant = prove(traces)
            if elsewhere is None:
                return _replayed(traces, meant, writer, manifest)
            _drop(writer)
            return {"recorded": False, **vars(elsewhere), "proven": traces.reference}
        except InputError as error:
            if golden == "always":
                raise
            reason = str(error)
    if golden == "never":
        return {"recorded": False, "reason": reason, "graphs": NOTHING, "weights": NOTHING, **_where(elsewhere)}
    prove_weights()
    own = _own(writer, manifest, reason) if elsewhere is None else {"recorded": False, "reason": reason}
    return {**own, "graphs": NOTHING, "weights": WEIGHTS, **_where(elsewhere)}


def _where(elsewhere: Elsewhere | None) -> dict[str, Any]:
    return {} if elsewhere is None else vars(elsewhere)


def _own(writer: BundleWriter, manifest: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Traces of the bundle itself, so that a device can be told from the machine of the build."""
    asked = conversations(own_pictures(inputs_of(manifest)))
    try:
        traces = record_own(dict(reversed(asked.items())), writer, manifest)
    except InputError as error:
        _drop(writer)
        return {"recorded": False, "reason": f"{reason}; and the bundle itself was not replayed: {error}"}
    write(traces, writer, {})
    names = [case.name for case in traces.cases] or [image.file for image in traces.images]
    return {"recorded": True, "reason": reason, "reference": traces.reference, "cases": names}


def _drop(writer: BundleWriter) -> None:
    """Take back what was written for traces."""
    writer.leave_out(name for name in writer.names if name.startswith(f"{GOLDEN}/"))
    shutil.rmtree(writer.partial / GOLDEN, ignore_errors=True)


def _reason_against(parameters: int, golden: Golden) -> str | None:
    if golden == "never":
        return "switched off by --golden never"
    if golden == "always":
        return None
    if 4 * parameters > AUTO_BYTES:
        return f"PyTorch needs {4 * parameters / 1e9:.1f} GB for the float32 weights; --golden always records them"
    try:
        import_torch()
    except MissingExtra as error:
        return str(error)
    return None


def _replayed(traces: Traces, meant: Run | None, writer: BundleWriter, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says about the traces, with the figures of their first replay; records what it gave."""
    rows, built = self_replay(writer.preview(manifest), traces)
    figures = summarize(rows)
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        raise CheckFailed(
            f"the graphs of {writer.out} give values that are not finite ({wrong[0]}); use another precision"
        )
    if meant is not None:
        built = with_meant(built, meant, str(writer.out))
    write_built(built, writer.add(RECORD), writer.add(SAMPLES))
    names = [case.name for case in traces.cases] or [image.file for image in traces.images]
    steps = {"steps": STEPS} if traces.cases else {}
    about = {"reference": traces.reference, "cases": names, **steps, "figures": figures, "rounding": _means(rows)}
    return {"recorded": True, **about}


def _means(rows: list[Row]) -> dict[str, float]:
    """How good the rounding is, which no check depends on: the mean KL in nats, and the share of PyTorch's tokens."""
    kinds = {"mean_kl": ("logits_kl", "step_logits_kl"), "same_token": ("greedy_agreement",)}
    values = {name: [row.value for row in rows if row.figure in figures] for name, figures in kinds.items()}
    return {name: float(f"{sum(found) / len(found):.4g}") for name, found in values.items() if found}
