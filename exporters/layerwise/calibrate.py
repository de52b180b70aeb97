"""Calibrates a checkpoint: one pass through its layers, which quantizes each stage from the inputs it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...calibration.moments import Means, Moments
from ...runtimes.engine import ImageFeatures
from ..scheme import Scheme
from .candidates import stored
from .model import FloatModel, drafts_of, features_of
from .outcomes import Outcome, OutcomeJournal
from .quantizer import Recipe, head_inputs, quantize_group, quantize_table
from .samples import IMAGE, Picture, Sample, keys_of
from .shares import Kinds, Shares
from .smoothing import Smoothing, smoothings
from .stages import Product, Stages, by_input
from .store import Store
from .streams import Floats, Runner, Stream

Progress = Callable[[int, int], None]
HEAD_SAMPLES = 16  # that the output head is quantized with, which needs a pass of its own
# Tokens that are multiplied at once: with those of one sample, reading and writing the sums takes more than the
# products, half of the time of a whole calibration where inputs are 6144 wide.
TOGETHER = 1024


@dataclass(frozen=True)
class Plan:
    """What to do: the schemes of all matrices by name, a recipe, and how much each part of the samples counts."""

    schemes: Mapping[str, Scheme]
    recipe: Recipe
    shares: Shares = field(default_factory=Shares)


class Calibration:
    """One calibration on its way through a model, into a store.

    Two streams run side by side where the recipe wants it: the float32 model, and the model as quantized so far. What
    an interrupted run has put into the store is not quantized again.
    """

    def __init__(self, model: FloatModel, plan: Plan, store: Store, text_prefix: str) -> None:
        self.model, self.plan, self.store = model, plan, store
        found = (_existing(smoothing, model) for smoothing in smoothings(model.spec.decoder, text_prefix))
        self.smoothings = {name: smoothing for smoothing in found for name in smoothing.consumers}
        self.journal = OutcomeJournal(store.folder / "outcomes.jsonl")
        self.done = 0
        self.total = model.stage_count

    def run(self, samples: Sequence[Sample], pictures: Mapping[str, Picture], progress: Progress) -> list[Outcome]:
        """Calibrate the vision encoder, the token table, the decoder and a draft head."""
        model, keys = self.model, keys_of(samples)
        count = 2 if self.plan.recipe.quantized_inputs else 1
        seen = [model.stream(model.pictures([pictures[key] for key in keys])) for _ in range(count)]
        if keys:
            self._pass(model.vision_stages, seen, [np.full(1, IMAGE, np.int8)] * len(keys), progress)
        self._quantize_tables(samples[:HEAD_SAMPLES], features_of(seen[0], keys))
        streams = [model.stream(model.questions(samples, features_of(stream, keys))) for stream in seen]
        starts = [[dict(values) for values in stream.samples] for stream in streams] if model.mtp else []
        self._pass(model.decoder_stages, streams, [sample.kinds for sample in samples], progress)
        if model.mtp is not None:
            drafts = [model.stream(drafts_of(model, samples, *pair)) for pair in zip(starts, streams, strict=True)]
            self._pass(model.mtp_stages, drafts, [sample.kinds[1:] for sample in samples], progress)
        return self.journal.outcomes

    def _quantize_tables(self, samples: Sequence[Sample], features: Mapping[str, ImageFeatures]) -> None:
        """Quantize the token table and the output head, before the first token is looked up."""
        quantized = (source for source in self.model.tables if self.plan.schemes[source.name].quantized)
        tables = [source for source in quantized if self.store.get(source.name) is None]
        if not tables:
            return
        stream = self.model.stream(self.model.questions(samples, features))
        for runner in self.model.runners(self.model.decoder_stages, {"float": (stream, self.model.rows)}):
            stream.advance(runner)
        weights = self.plan.shares.weights([sample.kinds for sample in samples])
        means = gather([stream], self.model.last, self.model.spec.decoder.hidden, weights)
        inputs = head_inputs(means, looked_up=self.model.spec.decoder.tied)
        for source in tables:
            tensor, scheme = self.model.checkpoint.tensor(source.name), self.plan.schemes[source.name]
            seen = inputs if source.name == self.model.head.name else None
            self.store.put(source.name, quantize_table(tensor, scheme, seen, self.plan.recipe.method))

    def _pass(self, stages: Stages, streams: Sequence[Stream], kinds: Kinds, progress: Progress) -> None:
        candidate, weights = stored(self.model, self.plan.schemes, self.store), self.plan.shares.weights(kinds)
        tables = (self.model.rows, candidate.tables)
        named = {str(index): (stream, tables[index]) for index, stream in enumerate(streams)}
        for runner in self.model.runners(stages, named):
            for value, products in by_input(runner.stage):
                names = {p.source.name for p in products if self.plan.schemes[p.source.name].bits < 8}
                if names and not names <= self.journal.finished:
                    columns = products[0].matrix.columns
                    self._quantize(runner, products, gather(streams, value, columns, weights))
            streams[0].advance(runner)
            for other in streams[1:]:
                candidate.advance(other, runner)
            self.done += 1
            progress(self.done, self.total)

    def _quantize(self, runner: Runner, products: Sequence[Product], means: Means) -> None:
        weights = {product.source.name: runner.original(product) for product in products}
        outcomes = quantize_group(
            weights,
            means,
            self.plan.schemes,
            self.smoothings.get(products[0].source.name),
            self.plan.recipe,
            self.store,
        )
        self.journal.record(outcomes)


def seen_by(model: FloatModel, samples: Sequence[Sample], pictures: Mapping[str, Picture]) -> dict[str, ImageFeatures]:
    """The features of the pictures of samples, as the float32 model has them."""
    keys = keys_of(samples)
    stream = model.stream(model.pictures([pictures[key] for key in keys]))
    if keys:
        for runner in model.runners(model.vision_stages, {"float": (stream, model.rows)}):
            stream.advance(runner)
    return features_of(stream, keys)


def gather(streams: Sequence[Stream], value: str, columns: int, weights: Sequence[Floats]) -> Means:
    """Means of a value over all samples, whose tokens have these weights; one weight stands for all of a sample."""
    moments = Moments(columns, len(streams) > 1)
    for rows, weight in _batches(streams, value, columns, weights):
        moments.add(rows[0], weight, *rows[1:])
    return moments.means()


def _batches(
    streams: Sequence[Stream], value: str, columns: int, weights: Sequence[Floats]
) -> Iterator[tuple[list[Floats], Floats]]:
    """Tokens of some samples together, TOGETHER of them or more: of each stream, and their weights."""
    rows: list[list[Floats]] = [[] for _ in streams]
    counted: list[Floats] = []
    for index, weight in enumerate(weights):
        for own, stream in zip(rows, streams, strict=True):
            own.append(stream.samples[index][value].reshape(-1, columns))
        counted.append(np.broadcast_to(weight, len(rows[0][-1])))
        if sum(map(len, counted)) >= TOGETHER or index == len(weights) - 1:
            yield [np.concatenate(own) for own in rows], np.concatenate(counted)
            rows, counted = [[] for _ in streams], []


def _existing(smoothing: Smoothing, model: FloatModel) -> Smoothing:
    """Without the biases that this model does not have."""
    there = tuple(name for name in smoothing.producers if name in model.checkpoint.tensors)
    return Smoothing(smoothing.consumers, there, smoothing.tied, smoothing.halves)
