"""What a manifest says about how a bundle was calibrated: figures as frozen dataclasses, and the layers they are of."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ...targets.errors import InputError
from .ranges import (
    Bits,
    Count,
    GroupSize,
    Name,
    Number,
    Text,
)

FLOAT, NEAREST, CALIBRATED = CANDIDATES = ("float", "nearest", "calibrated")
ENCODER = "encoder"  # the float decoder behind the rounded vision encoder
INDEXED = re.compile(r"(.+?)\.(\d+)\.(.+?)(?:\.weight)?$")
STACKS = {"deepstack": "DeepStack mergers", "mtp": "draft head", "vis": "vision encoder"}  # by a part of the name
DECODER = "decoder"
MOST_BITS = 8  # of quantized tensors
ORDER = (DECODER, "vision encoder", "DeepStack mergers", "draft head")


@dataclass(frozen=True)
class CalibratedMatrix:
    """One matrix; errors are relative mean squares of its outputs on the calibration tokens, next to those aimed at."""

    name: Name
    error: Number | None = None
    nearest_error: Number | None = None
    outliers: Number | None = None  # largest of the inputs' magnitudes over their median
    bits: Bits | None = None
    group_size: GroupSize | None = None
    method: Name | None = None  # that was kept for it: no worse on inputs it did not see than simpler ones


@dataclass(frozen=True)
class Drafted:
    """Of a draft head, on held-out samples: shares of the float model's drafts, and of drafts that were accepted."""

    top1: Number
    accepted: Number
    positions: Count


@dataclass(frozen=True)
class Judged:
    """One way to store the weights, on held-out samples: means by kind of token, or by task."""

    kl: dict[Name, Number] = field(default_factory=dict)  # nats, from the float model
    top1: dict[Name, Number] = field(default_factory=dict)  # share of positions with the same likeliest token
    positions: dict[Name, Count] = field(default_factory=dict)
    perplexity: Number | None = None
    accuracy: dict[Name, Number] = field(default_factory=dict)
    groups: dict[Name, Number] = field(default_factory=dict)  # KL by group of samples and positions
    drift: dict[Name, Number] = field(default_factory=dict)  # relative mean square error of each matrix's inputs
    drafts: Drafted | None = None  # None without a draft head

    @property
    def mean_kl(self) -> float | None:
        """Over the kinds of tokens, each counting the same."""
        return sum(self.kl.values()) / len(self.kl) if self.kl else None

    @property
    def same_top(self) -> float | None:
        """Share of all positions with the same likeliest token."""
        counted = [kind for kind in self.top1 if self.positions.get(kind)]
        total = sum(self.positions[kind] for kind in counted)
        return sum(self.top1[kind] * self.positions[kind] for kind in counted) / total if total else None

    @property
    def mean_accuracy(self) -> float | None:
        """Over the tasks, each counting the same."""
        return sum(self.accuracy.values()) / len(self.accuracy) if self.accuracy else None


@dataclass(frozen=True)
class RoundedActivations:
    """Dynamic int8 activations of the vision encoder: relative mean square errors of image features."""

    weights_error: Number  # of weights in 8 bits alone
    added: dict[Name, Number]  # by role, when the inputs of its matrices alone are rounded
    roles: tuple[Name, ...]  # that were kept
    error: Number  # of what was chosen
    limit: Number  # of what roles may add in all


@dataclass(frozen=True)
class OwnAnswers:
    """Answers that the model itself gave to samples without one."""

    samples: Count
    tokens: Count
    by: Text  # which form of the model, and how


@dataclass(frozen=True)
class Sampled:
    """What was calibrated and judged on."""

    source: Text | None = None
    sha256: Text | None = None
    seed: Count | None = None
    calibrated: Count | None = None
    held_out: Count | None = None
    kinds: dict[Name, Count] = field(default_factory=dict)  # of those that were calibrated on
    foreign_kinds: dict[Name, Count] = field(default_factory=dict)  # judged, and never calibrated on
    pictures: Count | None = None
    image_tokens: Count | None = None
    text_tokens: Count | None = None
    own_answers: OwnAnswers | None = None  # None where all samples came with answers, or got none
    warnings: tuple[Text, ...] = ()  # of what makes them less fit


@dataclass(frozen=True)
class CalibrationEvidence:
    """The calibration of one bundle. What an older or interrupted build did not record is empty or None."""

    method: Text = "an unknown method"
    samples: Sampled = Sampled()
    seconds: Number | None = None
    matrices: tuple[CalibratedMatrix, ...] = ()
    sensitivity: dict[Name, Number] = field(default_factory=dict)  # KL in nats when a layer alone has the fewest bits
    judgement: dict[Name, Judged] = field(default_factory=dict)  # of CANDIDATES, and of ENCODER
    measured: Count | None = None  # matrices that another quantizer got importances for, without figures of each
    activations: RoundedActivations | None = None  # None where the target offers none
    tried: dict[Name, tuple[Name, ...]] = field(default_factory=dict)  # methods, with the groups they were worse on
    kept: bool = True  # False: rounding to nearest was better, and is what the bundle has

    def judged(self, name: str) -> Judged:
        """The judgement of a candidate; an empty one where there is none."""
        return self.judgement.get(name, Judged())


def read_evidence(manifest: Mapping[str, Any]) -> CalibrationEvidence | None:
    """The calibration of a bundle, None where it has none; InputError for what cannot be evidence."""
    recorded = manifest.get("evidence", {}).get("calibration")
    if not recorded:
        return None
    try:
        if type(recorded.get("matrices")) is int:
            recorded = {**recorded, "matrices": [], "measured": recorded["matrices"]}
        found = msgspec.convert(recorded, CalibrationEvidence)
        known = {row.name for row in found.matrices}
        others = [  # the other quantized tensors: the tables of tokens and of the output head
            {"name": name, "bits": entry["bits"], "group_size": entry["group_size"]}
            for name, entry in manifest.get("precision", {}).items()
            if entry["bits"] <= MOST_BITS and name not in known
        ]
        rest = msgspec.convert(others, tuple[CalibratedMatrix, ...])
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the manifest's calibration evidence is damaged ({error}); export the bundle again") from None
    return replace(found, matrices=(*found.matrices, *rest))


@dataclass(frozen=True)
class MatrixPlace:
    """Where a matrix is: the stack of layers, the index of the layer, and which of its matrices it is."""

    stack: str
    layer: int
    kind: str  # "self_attn.q_proj"


def place(name: str) -> MatrixPlace | None:
    """The place of a tensor by its name in the checkpoint; None for one outside of layers."""
    found = INDEXED.match(name)
    if found is None:
        return None
    stack = next((title for part, title in STACKS.items() if part in found[1]), DECODER)
    return MatrixPlace(stack, int(found[2]), found[3])


def by_layer(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Names of tensors by stack and layer, in the order of the model."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if (where := place(name)) is not None:
            found[where.stack][where.layer].append(name)
    return {stack: dict(sorted(found[stack].items())) for stack in ORDER if stack in found}


def each_layer(names: Iterable[str]) -> Iterator[list[str]]:
    """The tensors of each layer together, and each one outside of layers by itself."""
    every = list(names)
    for layers in by_layer(every).values():
        yield from layers.values()
    yield from ([name] for name in every if place(name) is None)


def short_kinds(kinds: Iterable[str]) -> dict[str, str]:
    """Kinds of matrices without the block they are in, where that is still unique: "self_attn.q_proj" is "q_proj"."""
    every = list(dict.fromkeys(kinds))
    last = [kind.rpartition(".")[2] for kind in every]
    return {kind: short if last.count(short) == 1 else kind for kind, short in zip(every, last, strict=True)}


def shared_inputs(names: Iterable[str], figure: Callable[[str], object]) -> dict[object, list[str]]:
    """The matrices of a layer by their input: those that share one have exactly the same figures of it."""
    found: dict[object, list[str]] = defaultdict(list)
    for name in names:
        found[figure(name)].append(name)
    return dict(found)


@dataclass(frozen=True)
class LayerDrift:
    """The inputs of one layer's matrices, each input once, for each of NEAREST and CALIBRATED."""

    layer: int
    inputs: Mapping[str, tuple[float, ...]]  # relative mean square errors, those of 0 left out

    def mean(self, name: str) -> float | None:
        """The geometric mean, since errors multiply along the depth; None without any error."""
        values = self.inputs[name]
        return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def drifts(evidence: CalibrationEvidence) -> list[LayerDrift]:
    """How far the decoder's layers are off on held-out samples; empty without drift of both candidates."""
    nearest, calibrated = (evidence.judged(name).drift for name in (NEAREST, CALIBRATED))
    layers = by_layer(name for name in nearest if name in calibrated).get(DECODER, {})
    rows = []
    for layer, names in layers.items():
        pairs = list(shared_inputs(names, lambda name: (nearest[name], calibrated[name])))
        sides = zip((NEAREST, CALIBRATED), zip(*pairs, strict=True), strict=True)
        rows.append(LayerDrift(layer, {side: tuple(v for v in values if 0 < v < math.inf) for side, values in sides}))
    return rows


def sensitivities(evidence: CalibrationEvidence) -> dict[str, float]:
    """The sensitivity of each unit by its short name, what is outside of layers first: "token table", "0", "1"."""
    named = {unit_name(name): kl for name, kl in evidence.sensitivity.items()}
    return dict(sorted(named.items(), key=lambda item: int(item[0]) if item[0].isdigit() else -1))


def unit_name(name: str) -> str:
    """A layer as its number; the token table and the output head by what they are."""
    last = name.rpartition(".")[2]
    return last if last.isdigit() else "token table" if "embed" in name else "output head"
