"""What a model takes in the memory of a device: weights, states, cache, and activations by the size of images.

The constants are measured on Linux: peaks of resident memory of models with full widths and fewer layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..formats.onnx.ort_attention import SCORES
from ..spec import DecoderSpec
from ..tower_specs import Tower
from .matrix_kinds import MatrixKind
from .variants import Variant

PROGRAM_BYTES = 65_000_000  # interpreter and libraries
LAYER_BYTES, WORD_BYTES = 1_100_000, 420  # of a layer's nodes in a session; of a token of the vocabulary
GPU_PROGRAM_BYTES = 600_000_000  # CUDA's context and its libraries: an estimate
WIDE_BITS = 8  # matrices of so many bits and more, which ONNX Runtime keeps in an order of its own
UBATCH = 512  # tokens that llama.cpp computes at once


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes at the peak of an answer."""

    program: float
    weights: float
    states: float
    cache: float
    image: float  # activations of the vision encoder, pixels and features
    prompt: float  # activations of one step of a prompt
    loading: float  # what loading takes at its own peak, all together

    @property
    def peak(self) -> float:
        """At any time."""
        running = self.program + self.weights + self.states + self.cache + self.image + self.prompt
        return max(running, self.loading)

    def to_json(self) -> dict[str, float]:
        return {**{name: round(value) for name, value in asdict(self).items()}, "peak": round(self.peak)}


def memory_need(variant: Variant, *, tokens: int, image_tokens: int, context: int) -> MemoryNeed:
    """Of a conversation of so many tokens with an image in a prompt; `context` is what an engine makes room for."""
    spec, work, gpu = variant.spec, variant.workload, variant.target.halves
    rounded = variant.bits <= WIDE_BITS
    chunk = min(tokens, UBATCH if variant.format == "gguf" else variant.target.prefill_chunk)
    program = GPU_PROGRAM_BYTES if gpu else _program(variant)
    weights = _resident(variant)
    image = 0.0 if spec.vision is None else _image(spec.vision, image_tokens, rounded=rounded, gpu=gpu)
    prompt = 0.0 if spec.decoder is None else _prompt(spec.decoder, chunk, variant)
    if variant.format == "gguf" and spec.vision is not None:
        image += 8 * spec.vision.heads * _patches(spec.vision, image_tokens) ** 2  # scores of all pairs, twice
    ahead = gpu or variant.format == "gguf"  # the whole cache is there from the start
    cache = work.token_bytes * (context if ahead else tokens)
    return MemoryNeed(program, weights, 2 * work.state_bytes, cache, image, prompt, program + _loading(variant))


def _program(variant: Variant) -> float:
    spec = variant.spec
    layers = (spec.decoder.layers if spec.decoder else 0) + (spec.vision.used_depth if spec.vision else 0)
    return PROGRAM_BYTES + LAYER_BYTES * layers + WORD_BYTES * (spec.decoder.vocab if spec.decoder else 0)


def _resident(variant: Variant) -> float:
    """Weights of ONNX on a CPU that are not read where they are mapped: wider ones, floats as float32."""
    if variant.format != "onnx" or variant.target.halves:
        return variant.weight_bytes
    total = variant.weight_bytes
    for kind in variant.workload.matrices.kinds:
        if kind.scheme.bits == 16:
            total += variant.workload.stored(kind)  # in float32 they are twice as large
        if kind.scheme.bits >= 16 and kind.part == "table":
            total += 4 * kind.values  # rows are looked up in the table, and its product has a copy
    return total


def _loading(variant: Variant) -> float:
    """Matrices of 8 bits that are put in another order, and the largest of them once more meanwhile."""
    stored, moved = variant.workload.stored, [k for k in variant.workload.matrices.products if _is_moved(k, variant)]
    return sum(map(stored, moved)) + max((stored(kind) / kind.count for kind in moved), default=0.0)


def _is_moved(kind: MatrixKind, variant: Variant) -> bool:
    return variant.format == "onnx" and kind.scheme.bits == WIDE_BITS and not variant.target.halves


def _patches(tower: Tower, image_tokens: int) -> int:
    """That are encoded at once."""
    patches = image_tokens * tower.patches_per_token
    return min(patches, tower.tile_patches or patches)


def _image(tower: Tower, tokens: int, *, rounded: bool, gpu: bool) -> float:
    patches, taps = _patches(tower, tokens), len(tower.deepstack_layers)
    # The inner states of an MLP before and behind its activation beside those of its layer; float attention copies its
    # queries, keys and values.
    floats = 2 * tower.intermediate + (6.5 if rounded else 11.25) * tower.hidden
    kept = 4 * (2 * tokens * (1 + taps) * tower.out_hidden + 1.2 * tokens * _patch_values(tower))
    biases = (2 if tower.biased else 0) * 4 * patches**2 + (4 * SCORES if tower.biased else 0)
    return patches * floats * (2 if gpu else 4) + kept + biases


def _patch_values(tower: Tower) -> int:
    """Pixels behind an image token, with those of all channels and frames."""
    channels, *sides = tower.patch_shape
    values = channels * tower.patches_per_token
    for side in sides:
        values *= side
    return values


def _prompt(spec: DecoderSpec, tokens: int, variant: Variant) -> float:
    mixed = 0 if spec.delta_net is None else 5 * spec.delta_net.mixed
    floats = max(3 * spec.intermediate, mixed) + 8 * spec.hidden
    if variant.bits > WIDE_BITS:
        floats += 6 * spec.hidden + spec.heads * tokens  # scores of all heads for a token
    elif variant.bits == WIDE_BITS and variant.format == "onnx":
        floats += 12 * spec.hidden  # inputs in blocks of 8 bits, and what ONNX Runtime keeps of them
    logits = spec.vocab * (UBATCH if variant.format == "gguf" else 1)
    return (tokens * floats + logits) * (2 if variant.target.halves else 4)
