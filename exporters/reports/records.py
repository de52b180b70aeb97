"""What a comparison recorded: figures as frozen dataclasses that go to JSON and back unchanged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, mul
from statistics import median
from typing import TypeVar

import msgspec

from ...runtimes.bundle.calibration_evidence import CalibrationEvidence
from ...runtimes.storage.files import dump_json
from ...targets.errors import InputError
from .intervals import mean_interval, paired_difference, wilson, within

FORMAT = "lensmith-report-1"
T = TypeVar("T")


@dataclass(frozen=True)
class Repeated:
    """Repeated measurements of one figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Repeated:
        """Median, least and greatest of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Contender:
    """Speed and memory of one way to run the model, measured in a process of its own."""

    name: str  # "lensmith int4", "PyTorch bfloat16"
    engine: str  # libraries with their versions
    is_bundle: bool
    load_ms: float  # from the files to ready, without imports
    image_ms: Repeated  # decoding, resizing and cutting the image
    vision_ms: Repeated
    prefill_ms: Repeated
    decode_tokens_per_s: Repeated
    peak_memory_bytes: int  # of the whole process, up to the end of the speed measurement

    @property
    def first_token_ms(self) -> float:
        """From the question to the first token, of medians."""
        return self.image_ms.median + self.vision_ms.median + self.prefill_ms.median


@dataclass(frozen=True)
class Workload:
    """What was timed."""

    image: str
    width: int
    height: int
    prompt: str
    prompt_tokens: int  # image tokens among them
    image_tokens: int
    decode_steps: int
    repeats: int
    threads: int


@dataclass(frozen=True)
class ComponentSize:
    """Bytes of one part of the model, in the checkpoint and in the bundle."""

    name: str
    source_bytes: int
    bundle_bytes: int


@dataclass(frozen=True)
class Agreement:
    """How a contender's next-token distributions differ from the reference's, over some positions."""

    contender: str
    where: str  # "answers" or "prompts"
    positions: int
    kl_mean: float  # nats
    kl_median: float
    kl_p99: float
    kl_max: float
    top1: float  # share of positions with the same likeliest token
    histogram: tuple[int, ...]  # positions by KL, between the edges of HISTOGRAM_EDGES


HISTOGRAM_EDGES = tuple(10 ** (k / 2) for k in range(-16, 3))  # nats; the outer bins take what lies beyond


@dataclass(frozen=True)
class Graded:
    """Sums over samples whose answers are right by degrees, from 0 to 1."""

    reference: float
    bundle: float
    reference_squares: float
    bundle_squares: float
    products: float  # of what both got for a sample


RIGHT = 0.5  # a degree from which an answer counts as right


@dataclass(frozen=True)
class TaskScore:
    """How right greedy answers were in one task, on the same samples."""

    task: str
    samples: int
    both: int  # samples that both answered right
    only_reference: int
    only_bundle: int
    metric: str = "exact match"
    graded: Graded | None = None  # None where each answer is right or wrong

    @classmethod
    def of(cls, task: str, metric: str, pairs: Sequence[tuple[float, float]]) -> TaskScore:
        """From the degrees, from 0 to 1, of the reference's and the bundle's answers to each sample."""
        right = [(first >= RIGHT, second >= RIGHT) for first, second in pairs]
        counts = (right.count((True, True)), right.count((True, False)), right.count((False, True)))
        graded = None
        if any(degree not in (0, 1) for pair in pairs for degree in pair):
            first, second = zip(*pairs, strict=True)
            graded = Graded(sum(first), sum(second), *(sum(map(mul, *both)) for both in
                            ((first, first), (second, second), (first, second))))  # fmt: skip
        return cls(task, len(pairs), *counts, metric, graded)

    @property
    def sums(self) -> Graded:
        """Of the degrees, also where each is 0 or 1."""
        reference, bundle = self.both + self.only_reference, self.both + self.only_bundle
        return self.graded or Graded(reference, bundle, reference, bundle, self.both)

    @property
    def reference_accuracy(self) -> float:
        return self.sums.reference / self.samples

    @property
    def bundle_accuracy(self) -> float:
        return self.sums.bundle / self.samples

    @property
    def reference_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval; the normal one of degrees."""
        if self.graded is not None:
            return within(mean_interval(self.sums.reference, self.sums.reference_squares, self.samples), 0, 1)
        return wilson(self.both + self.only_reference, self.samples)

    @property
    def bundle_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval; the normal one of degrees."""
        if self.graded is not None:
            return within(mean_interval(self.sums.bundle, self.sums.bundle_squares, self.samples), 0, 1)
        return wilson(self.both + self.only_bundle, self.samples)

    @property
    def difference(self) -> tuple[float, float, float]:
        """Bundle minus reference, and its paired 95 % interval."""
        difference = self.bundle_accuracy - self.reference_accuracy
        if self.graded is not None:
            sums = self.sums
            squares = sums.bundle_squares + sums.reference_squares - 2 * sums.products
            return difference, *within(mean_interval(sums.bundle - sums.reference, squares, self.samples), -1, 1)
        return difference, *paired_difference(self.both, self.only_reference, self.only_bundle, self.samples)

    def __add__(self, other: TaskScore) -> TaskScore:
        """Both tasks as one."""
        graded = None
        if self.graded or other.graded:
            graded = Graded(*map(add, dataclasses.astuple(self.sums), dataclasses.astuple(other.sums)))
        metric = self.metric if self.metric == other.metric else "mean of the metrics"
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return dataclasses.replace(self, **counts, metric=metric, graded=graded)


COUNTS = ("samples", "both", "only_reference", "only_bundle")


@dataclass(frozen=True)
class Report:
    """One comparison of a bundle with its checkpoint."""

    model: str
    family: str
    precision: str
    parameters: int
    bundle_bytes: int
    source_bytes: int
    contenders: tuple[Contender, ...]  # the bundle first
    workload: Workload
    components: tuple[ComponentSize, ...]
    reference: str  # the contender that accuracy is measured against
    agreement: tuple[Agreement, ...]
    perplexity: dict[str, float]  # of the reference answers, teacher-forced, by contender
    tasks: tuple[TaskScore, ...]  # empty without a tasks file
    samples: str  # what the distributions and answers were measured on
    environment: dict[str, str]  # CPU, system, versions
    command: str
    notes: tuple[str, ...] = ()
    calibration: CalibrationEvidence | None = None  # of a bundle that was calibrated

    @property
    def bundle(self) -> Contender:
        """The compiled model."""
        return self.contenders[0]

    @property
    def rivals(self) -> tuple[Contender, ...]:
        """The PyTorch runs."""
        return self.contenders[1:]

    @property
    def total(self) -> TaskScore | None:
        """All tasks together; None without a tasks file."""
        if not self.tasks:
            return None
        return dataclasses.replace(reduce(add, self.tasks), task="all tasks")

    @property
    def ratios(self) -> dict[str, float]:
        """How many times the bundle is better than the better of the PyTorch runs, figure by figure."""
        bundle, rivals = self.bundle, self.rivals

        def less(figure: Callable[[Contender], float]) -> float:
            return min(map(figure, rivals)) / max(figure(bundle), 1e-9)

        return {
            "size": self.source_bytes / self.bundle_bytes,
            "load": less(lambda c: c.load_ms),
            "vision": less(lambda c: c.vision_ms.median),
            "prefill": less(lambda c: c.prefill_ms.median),
            "first_token": less(lambda c: c.first_token_ms),
            "decode": bundle.decode_tokens_per_s.median / max(c.decode_tokens_per_s.median for c in rivals),
            "memory": less(lambda c: c.peak_memory_bytes),
        }

    @property
    def figures(self) -> dict[str, float]:
        """Those of the bundle by the names that --fail-if has; what was not measured is left out."""
        bundle = self.bundle
        found = {
            "size_mb": self.bundle_bytes / 1e6, "load_ms": bundle.load_ms, "image_ms": bundle.image_ms.median,
            "vision_ms": bundle.vision_ms.median, "prefill_ms": bundle.prefill_ms.median,
            "first_token_ms": bundle.first_token_ms, "decode_tps": bundle.decode_tokens_per_s.median,
            "memory_mb": bundle.peak_memory_bytes / 1e6,
        }  # fmt: skip
        if (total := self.total) is not None:
            found |= {"accuracy": 100 * total.bundle_accuracy, "accuracy_drop": -100 * total.difference[0]}
        for row in self.agreement:
            if row.contender == bundle.name and row.where == "answers":
                found |= {"kl": row.kl_mean, "top1": 100 * row.top1}
        return found

    def to_json(self) -> str:
        """The report as JSON text, with the ratios for those who read it without this class."""
        return dump_json({"format": FORMAT, "ratios": self.ratios, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read `to_json`'s text; InputError for anything else."""
        return read_record(text, cls, FORMAT, "ratios")


def read_record(text: str, kind: type[T], form: str, derived: str) -> T:
    """A record from its JSON text of a format, without what is derived from it; InputError for anything else."""
    try:
        data = json.loads(text)
        if data.pop("format") != form:
            raise ValueError("another format")
        data.pop(derived)
        return msgspec.convert(data, kind)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not a report of lensmith compare ({error!r}); run it again") from None
