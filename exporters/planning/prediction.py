"""How long an answer takes on a device: by operations, by bytes, and by the rates that its profile names.

A stage takes as long as its operations, or as reading its weights, whichever is longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ...targets.device import Device
from .variants import Variant
from .workload import Work

QUESTION_TOKENS = 32  # a short question with the words that a template puts around it


@dataclass(frozen=True)
class Reach:
    """What a runtime reaches of a device's rates, by stage."""

    vision: float
    prefill: float
    decode: float


# lensmith's runtime is what the rates stand for, but for norms, activations and rotations of the encoder, which take a
# tenth of it. llama.cpp next to it, docs/figures.md: 0.2 and 0.31 of the encoder's pace (AVX-512, AVX2), 0.41 of
# prefill's, 0.6 of the bytes read in decoding. Of GPUs nothing is measured.
REACHES = {
    "onnx": Reach(0.9, 1.0, 1.0),
    "gguf": Reach(0.25, 0.45, 0.6),
    "tensorrt": Reach(0.9, 0.9, 0.9),
}


@dataclass(frozen=True)
class Prediction:
    """Of one question about one image."""

    image_tokens: int
    vision_s: float
    prefill_s: float

    @property
    def first_token_s(self) -> float:
        """From the question to the first token."""
        return self.vision_s + self.prefill_s


def predict(variant: Variant, image_tokens: int) -> Prediction:
    """The first token of an answer about an image; the second stage takes no time without a decoder."""
    device, reach, work = variant.target.device, REACHES[variant.format], variant.workload
    vision = _seconds(work.vision(image_tokens), device, reach.vision)
    if variant.spec.decoder is None:
        return Prediction(image_tokens, vision, 0.0)
    tokens = image_tokens + QUESTION_TOKENS
    prefill = work.prefill(tokens, ceil(tokens / variant.target.prefill_chunk))
    return Prediction(image_tokens, vision, _seconds(prefill, device, reach.prefill))


def tokens_per_s(variant: Variant, context: int) -> float:
    """Of decoding behind so many tokens; 0 without a decoder."""
    if variant.spec.decoder is None:
        return 0.0
    device, reach = variant.target.device, REACHES[variant.format].decode
    return 1 / (variant.workload.step(context).read_bytes / device.read_bytes_per_s / reach)


def _seconds(work: Work, device: Device, reach: float) -> float:
    computing = sum(count / device.rate(kind) for kind, count in work.operations.items())
    return max(computing, work.read_bytes / device.read_bytes_per_s) / reach
