"""Calibrates a checkpoint: one pass through its layers, which quantizes each stage from the inputs it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...exporters.progress import Steps
from ...exporters.storage.scheme import Scheme
from ...runtimes.engines.contract import ImageFeatures
from ..solvers.moments import Means, Moments
from .candidates import stored
from .float_model import FloatModel, drafts_of, features_of
from .matrix_outcomes import Outcome
from .prepared_samples import (
    IMAGE,
    Picture,
    Sample,
    keys_of,
)
from .shares import Kinds, Shares
from .smoothed_pairs import Smoothing, smoothings
from .stage_quantizer import (
    Matrices,
    Recipe,
    head_inputs,
    outcomes,
    put,
    quantize_group,
    quantize_table,
)
from .stages import Product, Stages, by_input
from .store import Store
from .streams import Floats, SampleStream, StageRunner
from .trial import Trial, Unseen

HEAD_SAMPLES = 16  # that the output head is quantized with, which needs a pass of its own
HEAD_JUDGED = 8  # that it is judged on
PATCHES = 32  # places of a picture that methods may be compared on
# Tokens that are multiplied at once, at least, and at least half as many as inputs are wide: with those of one sample,
# reading and writing the sums takes more than the products.
TOGETHER = 1024


@dataclass(frozen=True)
class PassPlan:
    """What to do: the schemes of all matrices by name, a recipe, and how much each part of the samples counts."""

    schemes: Mapping[str, Scheme]
    recipe: Recipe
    shares: Shares = field(default_factory=Shares)


class Calibration:
    """One calibration on its way through a model, into a store.

    Two streams run side by side where the recipe wants it: the float32 model, and the model as quantized so far. What
    an interrupted run has put into the store is not quantized again. A second store gets what a search of scales makes.
    """

    def __init__(self, model: FloatModel, plan: PassPlan, store: Store, searched: Store, text_prefix: str) -> None:
        self.model, self.plan, self.store, self.searched = model, plan, store, searched
        found = (_existing(smoothing, model) for smoothing in smoothings(model.spec.decoder, text_prefix))
        self.smoothings = {name: smoothing for smoothing in found for name in smoothing.consumers}
        self.done = 0
        self.total = model.stage_count

    def run(
        self,
        samples: Sequence[Sample],
        pictures: Mapping[str, Picture],
        progress: Steps,
        judged: Sequence[Sample] = (),
    ) -> list[Outcome]:
        """Calibrate the vision encoder, the token table, the decoder and a draft head.

        Methods are compared on `judged` samples, which no statistics come from.
        """
        model, own = self.model, keys_of(samples)
        keys = [*own, *(key for key in keys_of(judged) if key not in set(own))]
        count = 2 if self.plan.recipe.quantized_inputs else 1
        seen = [model.stream(model.pictures([pictures[key] for key in keys])) for _ in range(count)]
        if keys:
            self._pass(model.vision_stages, seen, [np.full(1, IMAGE, np.int8)] * len(own),
                       _of_pictures(judged, keys[len(own) :], len(own)), progress)  # fmt: skip
        self._quantize_tables(samples[:HEAD_SAMPLES], judged, features_of(seen[0], keys))
        asked = [*samples, *judged]
        streams = [model.stream(model.questions(asked, features_of(stream, keys))) for stream in seen]
        starts = [[dict(values) for values in stream.samples] for stream in streams] if model.mtp else []
        kinds = [sample.kinds for sample in asked]
        self._walk(model.decoder_stages, streams, kinds, judged, progress)
        if model.mtp is not None:
            drafts = [model.stream(drafts_of(model, asked, *pair)) for pair in zip(starts, streams, strict=True)]
            self._walk(model.mtp_stages, drafts, [kind[1:] for kind in kinds], judged, progress)
        return self.store.journal.outcomes

    def _walk(
        self, stages: Stages, streams: Sequence[SampleStream], kinds: Kinds, judged: Sequence[Sample], progress: Steps
    ) -> None:
        """A pass over tokens of these kinds, of which the last are those of judged samples."""
        first = len(kinds) - len(judged)
        trial = Trial.of(kinds[first:], [sample.foreign for sample in judged], first)
        self._pass(stages, streams, kinds[:first], trial, progress)

    def _quantize_tables(
        self, samples: Sequence[Sample], judged: Sequence[Sample], features: Mapping[str, ImageFeatures]
    ) -> None:
        """Quantize the token table and the output head, before the first token is looked up."""
        quantized = (source for source in self.model.tables if self.plan.schemes[source.name].quantized)
        tables = [source for source in quantized if self.store.get(source.name) is None]
        if not tables:
            return
        few = judged[:: -(-len(judged) // HEAD_JUDGED)] if judged else []
        stream = self.model.stream(self.model.questions([*samples, *few], features))
        for runner in self.model.runners(self.model.decoder_stages, {"float": (stream, self.model.rows)}):
            stream.advance(runner)
        last, hidden = self.model.last, self.model.spec.decoder.hidden
        means = gather([stream], last, hidden, self.plan.shares.weights([sample.kinds for sample in samples]))
        trial = Trial.of([sample.kinds for sample in few], [sample.foreign for sample in few], len(samples))
        unseen = trial.see([stream], last, hidden)
        inputs = head_inputs(means, looked_up=self.model.spec.decoder.tied)
        for source in tables:
            tensor, scheme = self.model.checkpoint.tensor(source.name), self.plan.schemes[source.name]
            head = source.name == self.model.head.name
            method = self.plan.recipe.method
            made = quantize_table(tensor, scheme, inputs if head else None, method, unseen if head else Unseen(()))
            for store, table in zip((self.searched, self.store), made, strict=True):
                store.put(source.name, table)

    def _pass(
        self, stages: Stages, streams: Sequence[SampleStream], kinds: Kinds, trial: Trial, progress: Steps
    ) -> None:
        candidate, weights = stored(self.model, self.plan.schemes, self.store), self.plan.shares.weights(kinds)
        tables = (self.model.rows, candidate.tables)
        named = {str(index): (stream, tables[index]) for index, stream in enumerate(streams)}
        for runner in self.model.runners(stages, named):
            for value, products in by_input(runner.stage):
                names = {p.source.name for p in products if self.plan.schemes[p.source.name].bits < 8}
                if names and not names <= self.store.journal.finished:
                    columns = products[0].matrix.columns
                    means, unseen = gather(streams, value, columns, weights), trial.see(streams, value, columns)
                    self._quantize(runner, products, means, unseen)
            streams[0].advance(runner)
            for other in streams[1:]:
                candidate.advance(other, runner)
            self.done += 1
            progress(self.done, self.total)

    def _quantize(self, runner: StageRunner, products: Sequence[Product], means: Means, unseen: Unseen) -> None:
        weights = {product.source.name: runner.original(product) for product in products}
        matrices = Matrices(weights, self.plan.schemes, means, unseen)
        smoothing = self.smoothings.get(products[0].source.name)
        nearest, searched, kept = quantize_group(matrices, smoothing, self.plan.recipe)
        for store, rounded in {self.searched: searched, self.store: kept}.items():  # which may be one
            put(store, matrices, smoothing, rounded)
            store.journal.record([*outcomes(matrices, rounded, nearest)])


def _of_pictures(judged: Sequence[Sample], keys: Sequence[str], first: int) -> Trial:
    """The trial on these pictures, which only judged samples have; those of several kinds count as own ones."""
    own = {key for sample in judged if not sample.foreign for key in sample.pictures}
    return Trial.of([np.full(PATCHES, IMAGE, np.int8)] * len(keys), [key not in own for key in keys], first)


def seen_by(model: FloatModel, samples: Sequence[Sample], pictures: Mapping[str, Picture]) -> dict[str, ImageFeatures]:
    """The features of the pictures of samples, as the float32 model has them."""
    keys = keys_of(samples)
    stream = model.stream(model.pictures([pictures[key] for key in keys]))
    if keys:
        for runner in model.runners(model.vision_stages, {"float": (stream, model.rows)}):
            stream.advance(runner)
    return features_of(stream, keys)


def gather(streams: Sequence[SampleStream], value: str, columns: int, weights: Sequence[Floats]) -> Means:
    """Means of a value over all samples, whose tokens have these weights; one weight stands for all of a sample."""
    moments = Moments(columns, len(streams) > 1)
    for rows, weight in _batches(streams, value, columns, weights):
        moments.add(rows[0], weight, *rows[1:])
    return moments.means()


def _batches(
    streams: Sequence[SampleStream], value: str, columns: int, weights: Sequence[Floats]
) -> Iterator[tuple[list[Floats], Floats]]:
    """Tokens of some samples together, see TOGETHER: of each stream, and their weights."""
    enough = max(TOGETHER, columns // 2)
    rows: list[list[Floats]] = [[] for _ in streams]
    counted: list[Floats] = []
    for index, weight in enumerate(weights):
        for own, stream in zip(rows, streams, strict=True):
            own.append(stream.samples[index][value].reshape(-1, columns))
        counted.append(np.broadcast_to(weight, len(rows[0][-1])))
        if sum(map(len, counted)) >= enough or index == len(weights) - 1:
            yield [np.concatenate(own) for own in rows], np.concatenate(counted)
            rows, counted = [[] for _ in streams], []


def _existing(smoothing: Smoothing, model: FloatModel) -> Smoothing:
    """Without the biases that this model does not have."""
    there = tuple(name for name in smoothing.producers if name in model.checkpoint.tensors)
    return Smoothing(smoothing.consumers, there, smoothing.tied, smoothing.halves)
