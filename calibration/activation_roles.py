"""Dynamic int8 activations as a part of calibration: kept where this model's image features bear them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..exporters.job import Job
from ..exporters.progress import Steps
from ..exporters.storage.scheme import Scheme
from .layerwise.activations import Activations, measure
from .layerwise.float_model import FloatModel
from .layerwise.prepared_samples import Picture
from .mixed_precision import schemes_of, with_policy

Offered = Mapping[str, Mapping[str, Scheme]]  # by role: the schemes of its matrices with int8 activations


@dataclass(frozen=True)
class Roles:
    """A job with the roles that were kept, what was measured, and what to say of each matrix of all roles."""

    job: Job
    measured: Activations | None = None  # None: the target offers none, or nothing is stored in 8 bits
    reasons: Mapping[str, str] = field(default_factory=dict)


def choose_roles(model: FloatModel, job: Job, pictures: Sequence[Picture], progress: Steps = lambda *_: None) -> Roles:
    """Measure the roles that the target offers on pictures, and keep those within the limit."""
    plain = _schemes(job, ())
    found = {
        role: {name: scheme for name, scheme in _schemes(job, (role,)).items() if scheme.int8_activations}
        for role in job.policy.int8_roles
    }
    offered: Offered = {role: schemes for role, schemes in found.items() if schemes}
    if not offered or not pictures:
        return Roles(job)
    measured = measure(model, plain, offered, pictures, progress)
    chosen = with_policy(job, replace(job.policy, int8_roles=measured.roles))
    return Roles(chosen, measured, dict(_reasons(measured, offered)))


def _schemes(job: Job, roles: tuple[str, ...]) -> dict[str, Scheme]:
    return schemes_of(with_policy(job, replace(job.policy, int8_roles=roles)).graphs)


def _reasons(measured: Activations, offered: Offered) -> Iterator[tuple[str, str]]:
    for role, schemes in offered.items():
        kept = "int8 activations" if role in measured.roles else "no int8 activations, which"
        text = f"rounded to nearest; {kept} add {measured.added[role]:.1e} to the error of image features"
        yield from ((name, text) for name in schemes)
