"""A checkpoint's graphs in float32, run layer by layer over samples: what calibration and its judgement share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...exporters.checkpoint.folder import Checkpoint
from ...exporters.graphs.blocks import SourceTensor
from ...exporters.graphs.graph_files import Graph
from ...exporters.spec import ModelSpec
from ...runtimes.engines.contract import ImageFeatures
from .prepared_samples import (
    Picture,
    Sample,
    draft_values,
    picture_values,
    sample_values,
)
from .shelf import Room
from .stages import Stages, cut
from .streams import (
    SampleStream,
    StageRunner,
    Values,
    table_rows,
)

Floats = NDArray[np.float32]
Tables = Callable[[SourceTensor, NDArray[np.int64]], Floats]  # rows of a table by id


@dataclass(frozen=True)
class FloatModel:
    """The graphs of a job in float32 and where their weights are."""

    checkpoint: Checkpoint
    spec: ModelSpec
    vision: Graph | None
    decoder: Graph
    mtp: Graph | None
    threads: int
    room: Room = field(default_factory=lambda: Room(None))  # of the values of streams

    @cached_property
    def decoder_stages(self) -> Stages:
        return cut(self.decoder)

    @cached_property
    def vision_stages(self) -> Stages:
        """Of the vision encoder, which there is."""
        assert self.vision is not None
        return cut(self.vision)

    @property
    def stage_count(self) -> int:
        """Stages of all graphs."""
        graphs = [*([self.vision_stages] if self.vision else []), self.decoder_stages,
                  *([self.mtp_stages] if self.mtp else [])]  # fmt: skip
        return sum(len(stages.stages) for stages in graphs)

    @cached_property
    def mtp_stages(self) -> Stages:
        """Of the draft head, which there is."""
        assert self.mtp is not None
        return cut(self.mtp)

    @property
    def head(self) -> SourceTensor:
        """The source of the output head."""
        assert self.decoder_stages.head is not None
        return self.decoder_stages.head.source

    @cached_property
    def tables(self) -> tuple[SourceTensor, ...]:
        """The token table and the output head, which may be one."""
        products = {p.source.name for stage in self.decoder_stages.stages for p in stage.products}
        return tuple(s for s in self.decoder.sources if s.matrix is not None and s.name not in products)

    @property
    def last(self) -> str:
        """The value that the head is multiplied with."""
        assert self.decoder_stages.head is not None
        return self.decoder_stages.head.input

    def stream(self, samples: Sequence[Values]) -> SampleStream:
        """Samples on their way through the stages of a graph."""
        return SampleStream(samples, self.room)

    def pictures(self, pictures: Sequence[Picture]) -> list[Values]:
        """Values to start the vision encoder with."""
        return [picture_values(picture, self.vision) for picture in pictures if self.vision is not None]

    def questions(self, samples: Sequence[Sample], features: Mapping[str, ImageFeatures]) -> list[Values]:
        """Values to start the decoder with."""
        return [sample_values(sample, features, self.spec, self.decoder) for sample in samples]

    def rows(self, source: SourceTensor, ids: NDArray[np.int64]) -> Floats:
        """Rows of a table as the checkpoint has them."""
        return table_rows(self.checkpoint, source, ids)

    def runners(self, stages: Stages, streams: Mapping[str, tuple[SampleStream, Tables]]) -> Iterator[StageRunner]:
        """One stage after the other, each with its lookups done; the caller advances the streams."""
        for stage in stages.stages:
            for stream, tables in streams.values():
                stream.look_up(stage, tables)
            first = next(iter(streams.values()))[0].samples[0]
            yield StageRunner(stage, self.checkpoint, first, self.threads)


def drafts_of(
    model: FloatModel, samples: Sequence[Sample], starts: Sequence[Values], stream: SampleStream
) -> list[Values]:
    """Values to start the draft head with, from those that the decoder started with and what came of them."""
    assert model.mtp is not None
    return [
        draft_values(sample, start, values[model.last], model.mtp)
        for sample, start, values in zip(samples, starts, stream.samples, strict=True)
    ]


def features_of(stream: SampleStream, keys: Sequence[str]) -> dict[str, ImageFeatures]:
    """The outputs of a vision encoder by the keys of its pictures."""
    return {
        key: ImageFeatures(values["image_features"], values.get("deepstack_features"))
        for key, values in zip(keys, stream.samples, strict=True)
    }
