"""The ways to store a model that a target can run, each with what it takes, from one description of its matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Type

from ...targets.profile import TargetProfile
from ..formats.gguf.file_types import FILE_TYPES
from ..formats.lowering import LOWERINGS
from ..graphs.kv_cache import make_kv_cache
from ..graphs.state_names import all_states
from ..job import Job
from ..spec import Spec
from ..storage.scheme import PRECISIONS, make_policy
from .matrix_kinds import ENCODER, Matrices, MatrixKind, matrices_of
from .workload import Workload

# What a mixed file type of llama.cpp adds to the bits of its main type: some matrices get more, and norms stay floats.
MIXED_BITS = 0.35
CPU_ARITHMETIC = {32: "float32", 16: "float32", 8: "int8_stock", 4: "int4", 3: "int3", 2: "int2"}
# Of GPUs, whose products are those of activations in 16 bits, and of llama.cpp, which has no kernel of 8 bits besides.
PLAIN_ARITHMETIC = {32: "float32", 16: "float16", 8: "int8", 4: "int4", 3: "int3", 2: "int2"}


@dataclass(frozen=True)
class Variant:
    """One way to store a model for a target."""

    format: str
    precision: str
    group_size: int
    bits: float  # of a weight of the decoder's matrices
    target: TargetProfile
    workload: Workload
    weight_bytes: float

    @property
    def spec(self) -> Spec:
        return self.workload.spec

    @property
    def calibrate(self) -> bool:
        """Whether it wants calibration to keep answers: fewer than four bits."""
        return self.bits < 4


def variant_of(job: Job, target: TargetProfile) -> Variant:
    """The one that a job describes, on a target: that of the job, but for GGUF, whose files are for any."""
    options = job.options
    return make_variant(matrices_of(job), job.spec, target, options.format, options.precision,
                        options.group_size, job.policy.kv_cache.kind)  # fmt: skip


def variants(matrices: Matrices, spec: Spec, target: TargetProfile) -> Iterator[Variant]:
    """All that make sense on a target, in its formats."""
    for name in target.device.formats:
        for precision, group in CHOICES[name](target):
            if precision not in target.lacks:
                yield make_variant(matrices, spec, target, name, precision, group, None)


def _packed(target: TargetProfile) -> Iterator[tuple[str, int]]:
    """Precisions of graphs: those of the device's widths, and fewer bits where CPUs read them as they are."""
    names = {16: "fp16", 8: "int8", 4: "int4"}
    for bits in target.device.bits:
        yield names[bits], target.device.group_size
    if 4 in target.device.bits:
        yield "int4", 32
    if target.dialect == "ort":
        yield from (("int3", target.device.group_size), ("int2", 32))


def _file_types(target: TargetProfile) -> Iterator[tuple[str, int]]:
    yield from ((name, 0) for name in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k"))


CHOICES: dict[str, Callable[[TargetProfile], Iterator[tuple[str, int]]]] = {
    "onnx": _packed, "tensorrt": _packed, "gguf": _file_types,
}  # fmt: skip


def make_variant(
    matrices: Matrices, spec: Spec, target: TargetProfile, name: str, precision: str, group: int, cache: str | None
) -> Variant:
    """A model in a format and a precision; `cache` None is the format's usual one."""
    make = _gguf if name == "gguf" else _onnx
    return make(matrices, spec, target, name, precision, group, cache)


def _onnx(
    matrices: Matrices, spec: Spec, target: TargetProfile, name: str, precision: str, group: int, cache: str | None
) -> Variant:
    lowering = LOWERINGS[name]
    policy = make_policy(precision, group_size=group, int8_roles=target.int8_activations,
                         whole_rows=lowering.whole_rows)  # fmt: skip
    dialect, made = lowering.dialect(target, precision, spec), matrices.under(policy)
    cache = cache or lowering.usual_cache(policy, target, spec)
    arithmetic = PLAIN_ARITHMETIC if target.halves else CPU_ARITHMETIC
    token_bytes, state_bytes = _state_bytes(spec, cache, halves=target.halves and precision != "fp32")
    work = Workload(spec, made, arithmetic, lambda kind: kind.nbytes(dialect), token_bytes, state_bytes)
    bits = PRECISIONS[precision].decoder
    return Variant(name, precision, group, bits, target, work, made.nbytes(dialect))


def _gguf(
    matrices: Matrices, spec: Spec, target: TargetProfile, name: str, precision: str, group: int, cache: str | None
) -> Variant:
    kind, plain = FILE_TYPES[precision], make_policy("int8" if FILE_TYPES[precision].mmproj == "Q8_0" else "fp16")
    bits = _bits(kind.model) + (MIXED_BITS if precision.endswith(("_m", "_l")) else 0)

    def stored(each: MatrixKind) -> float:
        return each.values * (_bits(kind.mmproj) if each.graph == ENCODER else bits) / 8

    made = matrices.under(plain)
    width = min(PLAIN_ARITHMETIC, key=lambda known: abs(known - bits))
    arithmetic = dict.fromkeys(PLAIN_ARITHMETIC, PLAIN_ARITHMETIC[width])
    token_bytes, state_bytes = _state_bytes(spec, "float16", halves=False)
    work = Workload(spec, made, arithmetic, stored, token_bytes, state_bytes)
    return Variant(name, precision, group, bits, target, work, made.other_bytes + sum(map(stored, made.kinds)))


def _bits(kind: str) -> float:
    block, nbytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    return 8 * nbytes / block


def _state_bytes(spec: Spec, cache: str, *, halves: bool) -> tuple[int, int]:
    """Of the cache for each token, and of states of fixed size; in 16 bits where activations have as many."""
    if spec.decoder is None:
        return 0, 0
    states = list(all_states(spec.decoder, make_kv_cache(cache, None, spec.decoder)))
    sizes = [(state.grows, state.nbytes // (2 if halves and state.bits == 32 and not state.exact else 1))
             for state in states]  # fmt: skip
    return sum(size for grows, size in sizes if grows), sum(size for grows, size in sizes if not grows)
