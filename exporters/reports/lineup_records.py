"""What a comparison of many builds recorded: one record for each entrant, to JSON and back unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from ...runtimes.storage.files import dump_json
from .intervals import mean_interval, wilson, within
from .records import Agreement, Repeated, read_record

FORMAT = "lensmith-lineup-1"


@dataclass(frozen=True)
class TaskResult:
    """How right an entrant's answers to one task were: the mean degree from 0 to 1, and its 95 % interval."""

    task: str
    metric: str
    samples: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, task: str, metric: str, degrees: Sequence[float]) -> TaskResult:
        """Wilson's interval where each answer is right or wrong, else the normal one."""
        count, total = len(degrees), sum(degrees)
        if all(degree in (0, 1) for degree in degrees):
            interval = wilson(round(total), count)
        else:
            interval = within(mean_interval(total, sum(degree**2 for degree in degrees), count), 0, 1)
        return cls(task, metric, count, total / count, *interval)


@dataclass(frozen=True)
class Drop:
    """How much less right an entrant's answers are than the reference's, as shares, with the paired 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, reference: Sequence[float], degrees: Sequence[float]) -> Drop:
        """From the degrees of the same samples."""
        lost = [first - second for first, second in zip(reference, degrees, strict=True)]
        interval = mean_interval(sum(lost), sum(value**2 for value in lost), len(lost))
        return cls(sum(lost) / len(lost), *within(interval, -1, 1))


@dataclass(frozen=True)
class LayerError:
    """The relative root mean square error of all weights of one layer, against the checkpoint's."""

    stack: str  # "decoder", "vision encoder"
    layer: int
    error: float


@dataclass(frozen=True)
class Measured:
    """Speed and memory of an entrant, in a process of its own."""

    load_ms: float
    image_ms: Repeated
    vision_ms: Repeated
    prefill_ms: Repeated
    decode_tokens_per_s: Repeated | None  # None of an encoder
    peak_memory_bytes: int
    prompt_tokens: int
    image_tokens: int
    in_parts: bool = True  # else all until the first token is in `prefill_ms`

    @property
    def first_token_ms(self) -> float:
        """From the question to the first token, or the features of an encoder; of medians."""
        return self.image_ms.median + self.vision_ms.median + self.prefill_ms.median

    @property
    def speeds(self) -> dict[str, float]:
        """The figures whose noise is measured; more is worse."""
        decode = self.decode_tokens_per_s
        found = {"load": self.load_ms, "first token": self.first_token_ms, "memory": float(self.peak_memory_bytes)}
        return found if decode is None else {**found, "decode": 1000 / max(decode.median, 1e-9)}


@dataclass(frozen=True)
class Entrant:
    """One build, or one other way to run the model."""

    name: str
    model: str  # which checkpoint it is of
    build: str  # "onnx cpu int4 g128", "PyTorch float32"
    is_bundle: bool
    size_bytes: int
    engine: str = ""
    measured: Measured | None = None  # None where it failed
    failure: str = ""
    lacks: str = ""  # of the machine, where that is why: "a GPU"
    tasks: tuple[TaskResult, ...] = ()
    drop: Drop | None = None  # None without tasks, and where the reference failed
    agreement: Agreement | None = None  # with the reference's next tokens, over the answers
    feature_error: float | None = None  # of an encoder: the mean relative error of features
    layers: tuple[LayerError, ...] = ()
    command: str = ""  # that makes it again

    @property
    def accuracy(self) -> float | None:
        """Over all samples of all tasks."""
        samples = sum(task.samples for task in self.tasks)
        return sum(task.mean * task.samples for task in self.tasks) / samples if samples else None


@dataclass(frozen=True)
class Lineup:
    """Many builds next to each other."""

    entrants: tuple[Entrant, ...]  # in the order in which they were named, references and baselines behind
    references: dict[str, str]  # by model: the entrant that accuracy and distributions are measured against
    noise: dict[str, float]  # by figure of `Measured.speeds`: a ratio up to 1 + this says nothing
    threads: int
    repeats: int
    decode_steps: int
    image: str
    prompt: str
    samples: str
    environment: dict[str, str]
    command: str
    notes: tuple[str, ...] = field(default=())

    @property
    def bundles(self) -> tuple[Entrant, ...]:
        return tuple(entrant for entrant in self.entrants if entrant.is_bundle)

    @property
    def failed(self) -> tuple[Entrant, ...]:
        return tuple(entrant for entrant in self.entrants if entrant.failure)

    def to_json(self) -> str:
        """The lineup as JSON text, with the figures of each entrant by the names that --fail-if has."""
        figures = {entrant.name: entrant_figures(entrant) for entrant in self.entrants}
        return dump_json({"format": FORMAT, "figures": figures, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Lineup:
        """Read `to_json`'s text; InputError for anything else."""
        return read_record(text, cls, FORMAT, "figures")


def entrant_figures(entrant: Entrant) -> dict[str, float]:
    """What was measured of an entrant, by the names that --fail-if has; what was not is left out."""
    found: dict[str, float | None] = {"size_mb": entrant.size_bytes / 1e6, "feature_error": entrant.feature_error}
    if (made := entrant.measured) is not None:
        decode = made.decode_tokens_per_s
        found |= {
            "load_ms": made.load_ms, "image_ms": made.image_ms.median, "vision_ms": made.vision_ms.median,
            "prefill_ms": made.prefill_ms.median, "first_token_ms": made.first_token_ms,
            "decode_tps": decode.median if decode else None, "memory_mb": made.peak_memory_bytes / 1e6,
        }  # fmt: skip
    if (accuracy := entrant.accuracy) is not None:
        found |= {"accuracy": 100 * accuracy, "accuracy_drop": 100 * entrant.drop.mean if entrant.drop else None}
    if (agreement := entrant.agreement) is not None:
        found |= {"kl": agreement.kl_mean, "top1": 100 * agreement.top1}
    return {name: value for name, value in found.items() if value is not None}


def noise_of(once: Measured, again: Measured, others: Iterable[Measured]) -> dict[str, float]:
    """By figure: how far two processes of one entrant are apart, or half the usual spread of repeats where more."""
    apart = {name: _ratio(value, again.speeds[name]) - 1 for name, value in once.speeds.items()}
    spreads = dict(_spreads([once, again, *others]))
    return {name: max(value, spreads.get(name, 0.0)) for name, value in apart.items()}


def _spreads(rows: Sequence[Measured]) -> Iterable[tuple[str, float]]:
    chosen: Mapping[str, list[Repeated]] = {
        "first token": [max((row.vision_ms, row.prefill_ms), key=lambda part: part.median) for row in rows],
        "decode": [row.decode_tokens_per_s for row in rows if row.decode_tokens_per_s is not None],
    }
    for name, parts in chosen.items():
        if parts:
            yield name, median((part.high - part.low) / 2 / max(part.median, 1e-9) for part in parts)


def _ratio(first: float, second: float) -> float:
    return max(first, second) / max(min(first, second), 1e-9)


def compared(lineup: Lineup, name: str, entrant: Entrant, base: Entrant) -> float | None:
    """How many times better an entrant is in a figure of `speeds` or "size": 1 within the noise, None if unknown."""
    if name == "size":
        return base.size_bytes / max(entrant.size_bytes, 1)
    if entrant.measured is None or base.measured is None:
        return None
    ours, theirs = (side.measured.speeds.get(name) for side in (entrant, base) if side.measured)
    if ours is None or theirs is None:
        return None
    return 1.0 if _ratio(ours, theirs) <= 1 + lineup.noise.get(name, 0.0) else theirs / max(ours, 1e-9)
