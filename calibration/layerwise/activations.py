"""Whether the vision encoder of this model bears activations in 8 bits, measured on pictures role by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...exporters.progress import Steps
from ...exporters.storage.scheme import Scheme
from .candidates import Candidate, nearest, unchanged
from .float_model import FloatModel
from .prepared_samples import Picture
from .streams import Values, relative_error

PICTURES = 8  # that are looked at
# Of the features' relative mean square error, what all roles together may add. On the trained models each 1e-4 costs
# 0.0003 nats at image tokens at most, so the limit is a tenth of what the best calibrated int4 weights cost (0.014).
# All roles add 0.00005 to 0.00015 there; weights in 8 bits alone are off by 0.00006.
LIMIT = 5e-4
WEIGHTS = "weights"  # 8 bits for weights alone
OUTPUTS = ("image_features", "deepstack_features")


@dataclass(frozen=True)
class Activations:
    """Relative mean square errors of image features, and the roles whose inputs are rounded to 8 bits."""

    weights_error: float  # of weights in 8 bits alone
    added: Mapping[str, float]  # by each role that the target offers, when its inputs alone are rounded
    roles: tuple[str, ...]  # that were kept
    error: float  # of what was chosen
    limit: float = LIMIT


def measure(
    model: FloatModel,
    plain: Mapping[str, Scheme],
    offered: Mapping[str, Mapping[str, Scheme]],
    pictures: Sequence[Picture],
    progress: Steps = lambda *_: None,
) -> Activations:
    """Choose among roles with the schemes of their matrices; `plain` are all schemes without rounded activations."""
    candidates = {role: nearest(model, {**plain, **schemes}) for role, schemes in offered.items()}
    errors = feature_errors(model, {WEIGHTS: nearest(model, plain), **candidates}, pictures, progress)
    added = {role: max(errors[role] - errors[WEIGHTS], 0.0) for role in offered}
    roles = within(added, LIMIT)
    chosen = {name: scheme for role in roles for name, scheme in offered[role].items()}
    error = feature_errors(model, {"chosen": nearest(model, {**plain, **chosen})}, pictures)["chosen"]
    return Activations(errors[WEIGHTS], added, roles, error)


def within(added: Mapping[str, float], limit: float) -> tuple[str, ...]:
    """As many roles as fit into a limit of the sum, in their own order; errors of independent roundings add up."""
    cheap, total = set(), 0.0
    for role, error in sorted(added.items(), key=lambda item: item[1]):
        total += error
        if total <= limit:
            cheap.add(role)
    return tuple(role for role in added if role in cheap)


def feature_errors(
    model: FloatModel,
    candidates: Mapping[str, Candidate],
    pictures: Sequence[Picture],
    progress: Steps = lambda *_: None,
) -> dict[str, float]:
    """The relative mean square error of the features of all pictures, of the worst output, for each candidate."""
    race = {"": unchanged(model), **candidates}
    streams = {name: model.stream(model.pictures(pictures)) for name in race}
    stages = model.vision_stages
    for done, runner in enumerate(model.runners(stages, {n: (s, race[n].tables) for n, s in streams.items()})):
        for name, stream in streams.items():
            race[name].advance(stream, runner)
        progress(done + 1, len(stages.stages))
    return {name: _worst(streams[""].samples, streams[name].samples) for name in candidates}


def _worst(plain: Sequence[Values], other: Sequence[Values]) -> float:
    names = [name for name in OUTPUTS if name in plain[0]]
    return max(relative_error((a[n], b[n]) for a, b in zip(plain, other, strict=True)) for n in names)
