"""A little noise in what a bundle computes, to see how far rounding of activations carries it.

Other kernels differ in the last bits of float32. Whether a small model has any activation near enough to a half for
that is chance, so the noise is some hundred times larger: enough to turn some activations over in each product, whose
steps are far larger than itself, and too little to count where nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np
import onnx_ir as ir
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from ...runtimes.bundle.opening import Bundle
from ...runtimes.engines.contract import ImageFeatures, Vision
from ...runtimes.engines.run_wishes import for_cuda
from ...runtimes.evidence.verification import rounds_no_activations
from ...runtimes.generation.loading import answers
from ...runtimes.media.images import Grid, Patches

DECODER, ENCODER, GGUF = "decoder", "vision_encoder", ".gguf"
NOISE, HALF_NOISE = 2.0**-16, 2.0**-10  # relative, up and down in turn; a step of activations in float16
# Where all activations are float32, little noise says how far noise grows: 2^-22 changes outputs of the trained models
# as much as other orders of summation do.
FLOAT_NOISE, LEAST_NOISE = 2.0**-20, 2.0**-22


def noise_of(bundle: Bundle) -> float:
    """How much noise a bundle gets, which must not vanish where values become float16."""
    if for_cuda(bundle.manifest):
        return HALF_NOISE
    return FLOAT_NOISE if rounds_no_activations(bundle.manifest) else NOISE


def nudged(values: NDArray[Any], noise: float) -> NDArray[Any]:
    """Values with noise."""
    signs = 1 - 2 * (np.arange(values.shape[-1]) % 2)
    made: NDArray[Any] = (values * (1 + noise * signs)).astype(values.dtype)
    return made


def nudged_vision(vision: Vision, noise: float) -> Vision:
    """An encoder whose pixels get noise first."""

    def encode(patches: Patches, grid: Grid) -> ImageFeatures:
        return vision(nudged(patches, noise), grid)

    return encode


@contextmanager
def nudged_norms(bundle: Bundle, noise: float) -> Iterator[None]:
    """Within the context the norms in the files of the decoder have noise; no other run may read them then.

    So have those of llama.cpp's vision encoder, which turns pixels into bytes first.
    """
    vectors = list(_vectors(bundle)) if answers(bundle) else []
    kept = [np.array(vector) for vector in vectors]
    try:
        for vector in vectors:
            vector[...] = nudged(vector, noise)
        yield
    finally:
        for vector, values in zip(vectors, kept, strict=True):
            vector[...] = values


def _vectors(bundle: Bundle) -> Iterator[NDArray[Any]]:
    """Tensors of one axis in float32, mapped for writing."""
    path = bundle.graph(DECODER)
    if path.suffix == GGUF:
        for name in (DECODER, ENCODER):
            entry = bundle.content["graphs"].get(name, {"file": ""})
            if entry["file"].endswith(GGUF):
                for tensor in gguf.GGUFReader(bundle.graph(name), "r+").tensors:
                    if tensor.tensor_type == Type.F32 and len(tensor.shape) == 1:
                        yield tensor.data
        return
    for value in ir.load(path).graph.initializers.values():
        part = value.const_value
        if isinstance(part, ir.ExternalTensor) and part.dtype == ir.DataType.FLOAT and len(part.shape) == 1:
            shape = tuple(part.shape.numpy())
            yield np.memmap(path.parent / part.location, np.float32, "r+", part.offset or 0, shape)
