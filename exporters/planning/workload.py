"""What a model computes and reads: for an image, for a prompt, and for each token of an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..spec import DecoderSpec, Spec
from .matrix_kinds import ENCODER, Matrices, MatrixKind

# Operations for each value of a delta rule's state and token: decay, two products with the key, one with the query.
DELTA_OPERATIONS = 8
MERGED = ("merger", "deepstack")  # roles of matrices that see image tokens in place of patches


@dataclass(frozen=True)
class Work:
    """Operations by kind of arithmetic, a multiplication and a sum being two, and bytes of weights and states read."""

    operations: Mapping[str, float]
    read_bytes: float


@dataclass(frozen=True)
class Workload:
    """Of one way to store a model."""

    spec: Spec
    matrices: Matrices
    arithmetic: Mapping[int, str]  # of a decoder's matrices, by bits
    stored: Callable[[MatrixKind], float]  # bytes of matrices
    token_bytes: int  # of the cache, for each token
    state_bytes: int

    def vision(self, tokens: int) -> Work:
        """To encode an image of so many image tokens."""
        tower = self.spec.vision
        if tower is None or not tokens:
            return Work({}, 0)
        patches = tokens * tower.patches_per_token
        tiles = 1 if tower.tile_patches is None else max(1, round(patches / tower.tile_patches))
        done: dict[str, float] = defaultdict(float)
        kinds = [kind for kind in self.matrices.kinds if kind.graph == ENCODER]
        for kind in kinds:
            rows = tokens if kind.part in MERGED else patches
            done[_vision_arithmetic(kind)] += 2 * kind.values * rows
        done["attention"] += 4 * tower.hidden * tiles * tower.attended(patches // tiles)
        return Work(done, tiles * self._bytes(kinds))

    def prefill(self, tokens: int, steps: int) -> Work:
        """For a prompt of so many tokens in so many steps, of which the last one alone passes the head."""
        decoder = self.spec.decoder
        assert decoder is not None
        done: dict[str, float] = defaultdict(float)
        for kind in self.matrices.products:
            done[self.arithmetic[kind.scheme.bits]] += 2 * kind.values * (1 if kind.part == "table" else tokens)
        attended = 2 * tokens**2 * decoder.heads * decoder.head_dim  # each token to half of them
        done["attention"] += attended * (decoder.layers - len(decoder.linear_layers)) + tokens * _delta(decoder)
        return Work(done, steps * self._bytes(self.matrices.products))

    def step(self, context: int) -> Work:
        """For one token of an answer behind so many others."""
        one = self.prefill(1, 1)
        return Work(one.operations, one.read_bytes + context * self.token_bytes + 2 * self.state_bytes)

    def _bytes(self, kinds: Iterable[MatrixKind]) -> float:
        return sum(map(self.stored, kinds))


def _vision_arithmetic(kind: MatrixKind) -> str:
    """Encoders of 8 and 4 bits have kernels of their own."""
    return {32: "float32", 16: "float16"}.get(kind.scheme.bits, f"int{kind.scheme.bits}")


def _delta(spec: DecoderSpec) -> float:
    """Operations of all delta nets for one token."""
    net = spec.delta_net
    if net is None:
        return 0
    return len(spec.linear_layers) * DELTA_OPERATIONS * net.value_heads * net.key_dim * net.value_dim
