"""What the matrices of a decoder are multiplied with on samples, images among them: the importance of their columns.

llama.cpp's own tool sees text alone. Here the float32 model runs layer by layer over the samples that calibration of
ONNX bundles uses, with the features of their images, and every token counts the same, as in llama.cpp's tool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..exporters.formats.gguf.imatrix import Energy
from ..exporters.progress import Steps
from .layerwise.float_model import FloatModel, drafts_of
from .layerwise.layer_pass import seen_by
from .layerwise.prepared_samples import Picture, Sample
from .layerwise.stages import Stages, by_input
from .layerwise.streams import SampleStream


def gather(
    model: FloatModel, samples: Sequence[Sample], pictures: Mapping[str, Picture], progress: Steps = lambda *_: None
) -> dict[str, Energy]:
    """Sums of squares of the inputs of all matrices of the decoder over all tokens, by source tensor.

    Those of its draft head are among them, which reads what the decoder makes of the samples. The output head is
    counted for the decoder alone, since drafts have no say in what is right.
    """
    starts = model.questions(samples, seen_by(model, samples, pictures))
    stream = model.stream(starts)
    count = len(model.decoder_stages.stages) + (len(model.mtp_stages.stages) if model.mtp else 0)
    found = _walk(model, model.decoder_stages, stream, lambda done: progress(done, count))
    found[model.head.name] = _energy(stream, model.last, model.spec.decoder.hidden)
    if model.mtp is not None:
        drafts, first = model.stream(drafts_of(model, samples, starts, stream)), len(model.decoder_stages.stages)
        found |= _walk(model, model.mtp_stages, drafts, lambda done: progress(first + done, count))
    return found


def _walk(
    model: FloatModel, stages: Stages, stream: SampleStream, progress: Callable[[int], None]
) -> dict[str, Energy]:
    """Take a stream through the stages of a graph, and the energy of each of their matrices on the way."""
    found: dict[str, Energy] = {}
    for done, runner in enumerate(model.runners(stages, {"float": (stream, model.rows)}), start=1):
        for value, products in by_input(runner.stage):
            energy = _energy(stream, value, products[0].matrix.columns)
            found |= {product.source.name: energy for product in products}
        stream.advance(runner)
        progress(done)
    return found


def _energy(stream: SampleStream, value: str, columns: int) -> Energy:
    sums, count = np.zeros(columns), 0
    for sample in stream.samples:
        rows: NDArray[np.float32] = sample[value].reshape(-1, columns)
        sums += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        count += len(rows)
    return Energy(sums.astype(np.float32), count)
