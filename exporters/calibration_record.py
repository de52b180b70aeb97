"""What the manifest says of a calibration; `runtimes/calibration_evidence.py` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .layerwise.activations import Activations
from .layerwise.judge import Judgement, worse_groups
from .layerwise.outcomes import Outcome
from .layerwise.sensitivity import Sensitivity
from .scheme import Scheme


def record(
    method: str,
    samples: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    schemes: Mapping[str, Scheme],
    found: Mapping[str, Sensitivity],
    judged: Mapping[str, Judgement],
    activations: Activations | None,
    tried: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The evidence as plain values; the calibrated weights are kept where they are no worse than rounded ones.

    `tried` are the methods before this one and the groups on which they were worse.
    """
    worse = worse_groups(judged["calibrated"], judged["nearest"])
    made = {
        "method": method,
        "samples": samples,
        "matrices": [_row(outcome, schemes[outcome.name]) for outcome in outcomes],
        "sensitivity": {unit: value.kl for unit, value in found.items()},
        "judgement": {name: _short(asdict(value)) for name, value in judged.items()},
        "tried": {**tried, method: worse},
        "kept": not worse,
    }
    return made if activations is None else {**made, "activations": _short(asdict(activations))}


def _row(outcome: Outcome, scheme: Scheme) -> dict[str, Any]:
    return {**_short(asdict(outcome)), "bits": scheme.bits, "group_size": scheme.group_size}


def _short(values: Any) -> Any:
    """Figures with the digits that mean something: there are many, and the manifest travels with each bundle."""
    if isinstance(values, dict):
        return {key: _short(value) for key, value in values.items()}
    return float(f"{values:.4g}") if isinstance(values, float) else values
