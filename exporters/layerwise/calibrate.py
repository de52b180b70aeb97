"""Calibrates a checkpoint: one pass through its layers, which quantizes each stage from the inputs it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...calibration.moments import Moments
from ...calibration.rounding import Groups
from ..blocks import Source
from ..graphs import Graph
from ..scheme import Scheme
from .head import stored_head
from .judge import Candidate
from .model import FloatModel, features_of
from .quantizer import Outcome, Recipe, quantize_group, quantize_table
from .samples import IMAGE, Picture, Sample
from .smoothing import Smoothing, smoothings
from .stages import Product, Stage, Stages
from .store import Store
from .streams import Effective, Floats, Runner, Stream

Progress = Callable[[int, int], None]
PARTS = ("text", "image")  # what moments are gathered of apart


@dataclass(frozen=True)
class Plan:
    """What to do: the schemes of all matrices by name, a recipe, and the share of image tokens in the statistics."""

    schemes: Mapping[str, Scheme]
    recipe: Recipe
    image_share: float = 0.5


class Calibration:
    """One calibration on its way through a model."""

    def __init__(self, model: FloatModel, plan: Plan, store: Store, text_prefix: str) -> None:
        self.model, self.plan, self.store = model, plan, store
        found = smoothings(model.spec.decoder, text_prefix)
        self.smoothings = {name: _existing(s, model) for s in found for name in s.consumers}
        self.outcomes: list[Outcome] = []

    def run(self, samples: Sequence[Sample], pictures: Mapping[str, Picture], progress: Progress) -> list[Outcome]:
        """Calibrate the vision encoder, the token table and the decoder into the store."""
        model, keys = self.model, sorted({key for sample in samples for key in sample.pictures})
        self.done, self.total = 0, len(model.decoder_stages.stages) + len(model.vision_stages.stages)
        seen = self._streams([Stream(model.pictures([pictures[key] for key in keys])) for _ in range(self._count)])
        if keys:
            kinds = [np.full(1, IMAGE, np.int8)] * len(keys)
            self._pass(model.vision_stages, seen, kinds, {}, progress)
        else:
            self._nearest(model.vision)
        self._tables()
        starts = [model.questions(samples, features_of(stream, keys)) for stream in seen]
        streams = self._streams([Stream(start) for start in starts])
        self._pass(model.decoder_stages, streams, [s.kinds for s in samples], self.smoothings, progress)
        return self.outcomes

    @property
    def _count(self) -> int:
        return 2 if self.plan.recipe.quantized_inputs else 1

    def _streams(self, streams: list[Stream]) -> list[Stream]:
        return streams

    def _tables(self) -> None:
        """Quantize the token table and the head before the first token is looked up."""
        for source in _tables(self.model.decoder):
            scheme = self.plan.schemes[source.name]
            if scheme.quantized:
                self.store.put(source.name, quantize_table(self.model.checkpoint.tensor(source.name), scheme))

    def _nearest(self, graph: Graph) -> None:
        """Nothing to do: what is not in the store is rounded to nearest when it is written."""

    def _pass(
        self,
        stages: Stages,
        streams: list[Stream],
        kinds: Sequence[NDArray[np.int8]],
        table: Mapping[str, Smoothing],
        progress: Progress,
    ) -> None:
        candidate = stored(self.model, self.store)
        tables = [self.model.rows, candidate.tables]
        named = {str(index): (stream, tables[index]) for index, stream in enumerate(streams)}
        for runner in self.model.runners(stages, named):
            self._quantize(runner, streams, kinds, table)
            streams[0].advance(runner)
            for other in streams[1:]:
                other.advance(runner, candidate.matrices(runner))
            self.done += 1
            progress(self.done, self.total)

    def _quantize(
        self, runner: Runner, streams: list[Stream], kinds: Sequence[NDArray[np.int8]], table: Mapping[str, Smoothing]
    ) -> None:
        for value, products in _by_input(runner.stage):
            if not any(self.plan.schemes[p.source.name].quantized for p in products):
                continue
            moments = gather(streams, value, products[0].matrix.columns, kinds)
            share = {"text": 1 - self.plan.image_share, "image": self.plan.image_share}
            weights = {p.source.name: runner.original(p) for p in products}
            smoothing = table.get(products[0].source.name)
            self.outcomes += quantize_group(
                products, weights, moments, share, self.plan.schemes, smoothing, self.plan.recipe, self.store
            )


def gather(streams: list[Stream], value: str, columns: int, kinds: Sequence[NDArray[np.int8]]) -> dict[str, Moments]:
    """Moments of a value over all samples, by part."""
    moments = {part: Moments(columns, len(streams) > 1) for part in PARTS}
    for index, kind in enumerate(kinds):
        rows = [stream.samples[index][value].reshape(-1, columns) for stream in streams]
        image = np.broadcast_to(kind == IMAGE, len(rows[0]))
        for part, chosen in (("text", ~image), ("image", image)):
            moments[part].add(*(x[chosen] for x in rows))
    return moments


def stored(model: FloatModel, store: Store) -> Candidate:
    """The model with the weights of a store; matrices that are not there stay as they are."""

    def matrices(runner: Runner) -> Effective:
        def effective(product: Product) -> Floats | None:
            made = store.get(product.source.name)
            return None if made is None or made.groups is None else made.effective()

        return effective

    def rows(source: Source, ids: NDArray[np.int64]) -> Floats:
        made = stored_head(store, source)
        if made is None:
            return model.rows(source, ids)
        return _dequantized(made, ids)

    return Candidate(matrices, rows, lambda source: stored_head(store, source))


def _dequantized(made: Groups, ids: NDArray[np.int64]) -> Floats:
    from ...calibration.rounding import dequantize

    zeros = None if made.zero_points is None else made.zero_points[ids]
    return dequantize(Groups(made.values[ids], made.scales[ids], zeros, made.bits))


def _by_input(stage: Stage) -> Iterator[tuple[str, list[Product]]]:
    values = dict.fromkeys(product.input for product in stage.products)
    for value in values:
        yield value, [product for product in stage.products if product.input == value]


def _tables(graph: Graph) -> Iterator[Source]:
    for source in graph.sources:
        if source.name.endswith(("embed_tokens.weight", "lm_head.weight")):
            yield source


def _existing(smoothing: Smoothing, model: FloatModel) -> Smoothing:
    there = tuple(name for name in smoothing.producers if name in model.checkpoint.tensors)
    return Smoothing(smoothing.consumers, there, smoothing.tied, smoothing.halves)
