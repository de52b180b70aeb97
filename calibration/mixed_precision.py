"""Mixed precision as a part of calibration: bits and group size of each matrix of the decoder, within a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..exporters.graphs.graph_files import Graph
from ..exporters.job import Job
from ..exporters.planning.planned_bundle import make_plan
from ..exporters.progress import Progress
from ..exporters.storage import weights
from ..exporters.storage.scheme import Policy, Scheme
from ..targets.errors import InputError
from .layerwise.float_model import FloatModel
from .layerwise.layer_pass import seen_by
from .layerwise.prepared_samples import Picture, Sample
from .layerwise.sensitivity import (
    SAMPLES,
    Sensitivities,
    Sensitivity,
    mixed_schemes,
    options_of,
)

EVIDENCE_BYTES = 800  # of the manifest, for each matrix; 726 in a small LLaVA of mixed bits


def sensitivities(
    model: FloatModel, job: Job, samples: Sequence[Sample], pictures: Mapping[str, Picture], progress: Progress
) -> dict[str, Sensitivity]:
    """What rounding each layer alone does to the predictions, on a few of the calibration samples."""
    few = samples[:SAMPLES]
    features = seen_by(model, few, pictures)
    schemes = {name: s for name, s in schemes_of(job.graphs).items() if name in decoder_names(job)}
    start = model.questions(few, features)
    return Sensitivities(model, schemes).measure(start, few, lambda done, total: progress("sensitivity", done, total))


def choose_schemes(
    model: FloatModel, job: Job, found: Mapping[str, Sensitivity], budget: int | None, max_kl: float | None
) -> dict[str, Scheme]:
    """The scheme of each matrix of the decoder within a budget in bytes or a predicted divergence in nats."""
    schemes = schemes_of(job.graphs)
    names = [name for value in found.values() for name in value.errors]
    shapes = {name: model.checkpoint.tensor(name).shape[:2] for name in names}
    if budget is None:
        return mixed_schemes(found, schemes, shapes, max_bytes=None, max_kl=max_kl)  # type: ignore[arg-type]
    check_budget(job, budget)
    left = budget - (_calibrated_bytes(job) - sum(_bytes(job, name) for name in names))
    while True:  # tensors of a page and above start on one, and which these are depends on the choice
        try:
            chosen = mixed_schemes(found, schemes, shapes, max_bytes=left, max_kl=None)  # type: ignore[arg-type]
        except InputError:
            return cheapest(job)
        over = _calibrated_bytes(with_schemes(job, chosen)) - budget
        if over <= 0:
            return chosen
        left -= over


def cheapest(job: Job) -> dict[str, Scheme]:
    """The scheme with the fewest bytes of each matrix of the decoder whose bits are to be chosen."""
    schemes, names = schemes_of(job.graphs), decoder_names(job)
    columns = {name: job.checkpoint.tensor(name).shape[1] for name in names & schemes.keys()}
    return {name: options_of(schemes[name], size)[0] for name, size in columns.items() if schemes[name].quantized}


def check_budget(job: Job, budget: int) -> None:
    """InputError for a bundle that is larger than a budget whatever is chosen; nothing is measured for that."""
    least = _calibrated_bytes(with_schemes(job, cheapest(job)))
    if budget < least:
        raise InputError(
            f"a bundle of --precision {job.options.precision} takes {least} bytes at least and --budget is {budget}; "
            "raise it or use a smaller --precision"
        )


def _calibrated_bytes(job: Job) -> int:
    """Bytes of the bundle of a job with the evidence of its calibration."""
    return bundle_bytes(job) + EVIDENCE_BYTES * len(schemes_of(job.graphs))


def _bytes(job: Job, name: str) -> int:
    sources = (source for graph in job.graphs for source in graph.sources if source.name == name)
    return sum(weights.stored_bytes(parameter) for source in sources for parameter in source.parameters)


def bundle_bytes(job: Job) -> int:
    """Bytes of the bundle of a job, as its plan says, but for golden traces."""
    plan = make_plan(job)
    return plan.bundle_bytes - plan.golden_bytes


def with_schemes(job: Job, schemes: Mapping[str, Scheme]) -> Job:
    """A job in which some matrices of the decoder have schemes of their own, by name."""
    prefixes = job.family.prefixes
    chosen = {}
    for name, scheme in schemes.items():
        path = name.removesuffix(".weight")
        chosen["lm_head" if path == prefixes.head else path.removeprefix(f"{prefixes.text}.")] = scheme
    return with_policy(job, replace(job.policy, chosen=chosen))


def with_policy(job: Job, policy: Policy) -> Job:
    """A job with its graphs described anew for a policy."""
    dialect = job.lowering.dialect(job.target, job.options.precision, job.spec)
    graphs = job.family.graphs(job.spec, policy, dialect, dialect.opsets)
    return replace(job, policy=policy, graphs=graphs)


def schemes_of(graphs: Iterable[Graph]) -> dict[str, Scheme]:
    """The schemes of all matrices by name."""
    return {source.name: source.matrix.scheme for graph in graphs for source in graph.sources if source.matrix}


def decoder_names(job: Job) -> set[str]:
    """Names of the decoder's tensors."""
    return {source.name for graph in job.graphs if graph.name == "decoder" for source in graph.sources}
