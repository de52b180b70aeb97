"""How weights are stored: one scheme for each role a tensor has in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...targets.errors import InputError, closest
from ..graphs.kv_cache import FLOAT_CACHE, KvCache


@dataclass(frozen=True)
class Scheme:
    """Storage of one weight matrix: `bits` 32 or 16 are floats, 8 to 2 are integers in groups along the inputs.

    8 bits with `float8` are floats of 4 bits of exponent and 3 of mantissa (e4m3), with one scale for each row.
    """

    bits: int
    group_size: int = 0
    symmetric: bool = True
    reason: str = ""
    int8_activations: bool = False  # one group for each row, and activations rounded to 8 bits
    float8: bool = False
    many_rows: bool = False  # its inputs are the patches of an image, and never a single token

    @property
    def quantized(self) -> bool:
        return self.bits <= 8

    @property
    def role(self) -> str:
        """The role that a policy chose it for; of what no policy chose, the whole reason."""
        return self.reason.partition(":")[0]

    @property
    def block_size(self) -> int:
        """Inputs of a block as the kernels of products have them, a power of two: a group is one block or several."""
        return largest_group(self.group_size, LARGEST_BLOCKS[self.bits]) or self.group_size


LARGEST_BLOCKS = {8: 256, 4: 128, 3: 128, 2: 128}  # of products, by bits; ONNX Runtime refuses larger than 256
UNQUANTIZED = Scheme(32, reason="norms, biases, convolutions and position tables are never quantized")
# Each head's decay and update rate come from them, and the recurrent state carries their errors to the last token.
GATES = Scheme(32, reason="gates of linear attention are never quantized")


@dataclass(frozen=True)
class Precision:
    """A named choice: what `--precision` means for each role."""

    decoder: int  # bits of the decoder's matrices
    table: int  # bits of the embedding table and the output head, often one and the same
    vision: int  # bits of the vision encoder's matrices
    merger: int  # bits of the matrices that merge patches into image tokens
    deepstack: int  # bits of the matrices that merge patches into features added inside the decoder
    linear_attention: int  # bits of the decoder's projections to and from a recurrent state
    float8: bool = False  # 8 bits are floats


# DeepStack's mergers are a fifth of Qwen3-VL's vision encoder but only refine what the image tokens say:
# on the trained model 4 bits in small groups there move neither the KL divergence from float32 (0.0366 to 0.0363 nats
# with decoder groups of 128, 0.0121 to 0.0123 with 32) nor the accuracy beyond one question in 800.
# Below 4 bits two things stay at 4. The table: look-ups know no 3 bits, every token passes it twice, and with 2 bits
# the trained model's divergence is 0.507 nats instead of 0.191 (the decoder at 3 bits, groups of 32); 8 bits would give
# 0.171 and cost 155 MB more for 152,000 tokens of 2048. Projections to and from a recurrent state, whose errors stay
# in it: with the decoder at 3 bits 0.100 nats instead of 0.152 on the trained hybrid, and 0.087 with 8 bits; with the
# decoder at 2 bits 0.385 instead of 0.664, and 0.363.
PRECISIONS = {
    "fp32": Precision(32, 32, 32, 32, 32, 32),
    "fp16": Precision(16, 16, 16, 16, 16, 16),
    "int8": Precision(8, 8, 8, 8, 8, 8),
    "fp8": Precision(8, 8, 8, 8, 8, 8, float8=True),
    "int4": Precision(4, 4, 8, 8, 4, 4),
    "int3": Precision(3, 4, 8, 8, 4, 4),
    "int2": Precision(2, 4, 8, 8, 4, 4),
}
CHANNEL = 0  # a group size: all inputs of an output, one scale for each row
GROUP_SIZES = {"32": 32, "64": 64, "128": 128, "channel": CHANNEL}
DECODER_ROLES = ("decoder", "table", "linear_attention")  # in groups of the size that the user chose
VISION_GROUPS = {8: 256, 4: 32}  # largest groups by bits: 8 bits lose nothing in large ones, which are faster


@dataclass(frozen=True)
class Policy:
    """Maps a role and an input width to a scheme, and says how keys and values are kept."""

    precision: Precision
    group_size: int
    symmetric: bool
    int8_roles: tuple[str, ...] = ()  # roles whose inputs may be rounded to 8 bits as one tensor
    whole_rows: bool = False  # 8 bits have one scale for each row
    chosen: Mapping[str, Scheme] = field(default_factory=dict)  # of single matrices of the decoder, by path
    path: str = ""  # of the module that asks, below the decoder
    kv_cache: KvCache = FLOAT_CACHE

    @property
    def grouped(self) -> bool:
        """Whether matrices of a decoder are stored as integers in groups of the size that the user chose."""
        bits = {int(getattr(self.precision, role)) for role in DECODER_ROLES}
        whole = self.whole_rows or self.precision.float8
        return any(each < 8 or (each == 8 and not whole) for each in bits)

    def inside(self, module: str) -> Policy:
        """The policy for what is inside a module of the decoder."""
        return replace(self, path=f"{self.path}{module}.")

    def scheme(self, role: str, inputs: int, name: str = "") -> Scheme:
        """The scheme of a matrix with `inputs` columns in a role; `name` is that of a matrix of the decoder.

        Roles are the fields of Precision, or one of these with a part of its own, as in "vision.qkv".
        """
        if self.path + name in self.chosen:
            return self.chosen[self.path + name]
        part = role.partition(".")[0]
        bits = int(getattr(self.precision, part))
        if bits > 8:
            return Scheme(bits, reason=f"{role}: stored as float{bits}")
        if bits == 8 and self.precision.float8:
            return Scheme(8, inputs, True, f"{role}: 8-bit floats by row", float8=True)
        if bits == 8 and role in self.int8_roles:
            return Scheme(8, inputs, True, f"{role}: 8 bits by row, dynamic int8 activations", int8_activations=True)
        if bits == 8 and self.whole_rows:
            return Scheme(8, inputs, True, f"{role}: 8 bits by row, round to nearest")
        decoder = part in DECODER_ROLES
        group = self._group(inputs) if decoder else largest_group(inputs, VISION_GROUPS[bits])
        if group is None:
            return Scheme(16, reason=f"{role}: {inputs} inputs are no multiple of 16")
        symmetric = self.symmetric or not decoder
        return Scheme(bits, group, symmetric, f"{role}: {bits} bits", many_rows=not decoder)

    def _group(self, inputs: int) -> int | None:
        if self.group_size == CHANNEL:
            return inputs if inputs % 16 == 0 else None
        return largest_group(inputs, self.group_size)


def largest_group(inputs: int, wanted: int) -> int | None:
    """The largest power of two up to `wanted`, at least 16, that divides `inputs`."""
    group = wanted
    while group >= 16:
        if inputs % group == 0:
            return group
        group //= 2
    return None


def make_policy(
    precision: str,
    *,
    group_size: int = 128,
    symmetric: bool = True,
    int8_roles: tuple[str, ...] = (),
    whole_rows: bool = False,
) -> Policy:
    """The policy of a named precision; `group_size` CHANNEL gives each row one scale.

    Raises InputError for unknown names and group sizes.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; {closest(precision, PRECISIONS)}")
    if group_size not in GROUP_SIZES.values():
        raise InputError(f"group size {group_size} is not supported; expected one of {', '.join(GROUP_SIZES)}")
    return Policy(PRECISIONS[precision], group_size, symmetric, int8_roles, whole_rows)
