"""Scales of an int8 KV cache, from the keys and values of the float32 model over samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...exporters.graphs.kv_cache import KvScales
from ..solvers.kv_scales import Sample as CacheSample
from ..solvers.kv_scales import kv_scales
from .float_model import FloatModel
from .layer_pass import seen_by
from .prepared_samples import Picture, Sample
from .stages import Stage
from .streams import SampleStream

SAMPLES = 32  # of text and images; they take a pass through the decoder of their own


def cache_scales(model: FloatModel, samples: Sequence[Sample], pictures: Mapping[str, Picture]) -> KvScales:
    """Scales of keys and values by layer, as the first samples call for them."""
    few = samples[:SAMPLES]
    stream = model.stream(model.questions(few, seen_by(model, few, pictures)))
    return kv_scales(_caches(model, stream), model.spec.decoder.rotated)


def _caches(model: FloatModel, stream: SampleStream) -> Iterator[CacheSample]:
    """The keys and values of one layer and sample at a time."""
    stages = replace(model.decoder_stages, stages=tuple(_with_present(stage) for stage in model.decoder_stages.stages))
    for runner in model.runners(stages, {"float": (stream, model.rows)}):
        stream.advance(runner)
        for layer in _layers(runner.stage):
            for sample in stream.samples:
                yield {layer: (sample[f"present.{layer}.key"][0], sample[f"present.{layer}.value"][0])}


def _with_present(stage: Stage) -> Stage:
    """The stage that hands out the present keys and values it makes; those behind it drop them."""
    names = [f"present.{layer}.{kind}" for layer in _layers(stage) for kind in ("key", "value")]
    return replace(stage, outputs=(*stage.outputs, *names), needed=stage.needed.union(names))


def _layers(stage: Stage) -> list[int]:
    """The layers whose attention is in a stage."""
    made = [str(value.name).split(".") for node in stage.nodes for value in node.outputs]
    return [int(parts[1]) for parts in made if parts[0] == "present" and parts[-1] == "key"]
