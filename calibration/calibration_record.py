"""What the manifest says of a calibration; `runtimes/bundle/calibration_evidence.py` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..exporters.storage.scheme import Scheme
from .layerwise.activations import Activations
from .layerwise.judge import Judgement
from .layerwise.sensitivity import Sensitivity
from .layerwise.verdict import NEAREST, Verdict


def record(
    made: Verdict,
    samples: Mapping[str, Any],
    schemes: Mapping[str, Scheme],
    found: Mapping[str, Sensitivity],
    activations: Activations | None,
) -> dict[str, Any]:
    """The evidence as plain values."""
    judged = {name: made.judged[name] for name in ("float", NEAREST, "encoder") if name in made.judged}
    if made.store is not None:
        judged["calibrated"] = made.judged[made.method]
    matrices = []
    for outcome in made.store.journal.outcomes if made.store else ():
        scheme = schemes[outcome.name]
        matrices.append({**_short(asdict(outcome)), "bits": scheme.bits, "group_size": scheme.group_size})
    evidence = {
        "method": made.method,
        "samples": samples,
        "matrices": matrices,
        "sensitivity": {unit: value.kl for unit, value in found.items()},
        "judgement": {name: _short(_told(value)) for name, value in judged.items()},
        "tried": made.tried,
        "kept": made.kept,
    }
    return evidence if activations is None else {**evidence, "activations": _short(asdict(activations))}


def _told(judgement: Judgement) -> dict[str, Any]:
    """A judgement without the figures of single samples."""
    return {name: value for name, value in asdict(judgement).items() if name != "answers"}


def _short(values: Any) -> Any:
    """Figures with the digits that mean something: there are many, and the manifest travels with each bundle."""
    if isinstance(values, dict):
        return {key: _short(value) for key, value in values.items()}
    return float(f"{values:.4g}") if isinstance(values, float) else values
