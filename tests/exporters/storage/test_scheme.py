"""How weights are stored: bits and groups of each role by hand, and the blocks that the kernels of products take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lensmith.exporters.storage.scheme import (
    CHANNEL,
    GATES,
    UNQUANTIZED,
    Scheme,
    make_policy,
)
from lensmith.targets.errors import InputError

ROLES = ("decoder", "table", "vision.qkv", "merger.fc1", "deepstack.fc2", "linear_attention")
BITS = {  # of ROLES, as README.md says: the vision encoder at 8 bits, tables and recurrent projections at 4 or more
    "fp32": (32, 32, 32, 32, 32, 32),
    "fp16": (16, 16, 16, 16, 16, 16),
    "int8": (8, 8, 8, 8, 8, 8),
    "fp8": (8, 8, 8, 8, 8, 8),
    "int4": (4, 4, 8, 8, 4, 4),
    "int3": (3, 4, 8, 8, 4, 4),
    "int2": (2, 4, 8, 8, 4, 4),
}


@pytest.mark.parametrize("precision", BITS)
def test_bits_of_each_role(precision: str) -> None:
    made = [make_policy(precision).scheme(role, 1024) for role in ROLES]
    assert tuple(scheme.bits for scheme in made) == BITS[precision]
    assert [scheme.quantized for scheme in made] == [bits <= 8 for bits in BITS[precision]]
    assert {scheme.float8 for scheme in made} == {precision == "fp8"}
    assert all(scheme.reason.startswith(f"{role}: ") for role, scheme in zip(ROLES, made, strict=True))


GROUPS = [  # precision, role, inputs, wanted size, size
    ("int4", "decoder", 1024, 128, 128),
    ("int4", "decoder", 1024, 32, 32),
    ("int4", "decoder", 1056, 128, 32),  # 33 times 32
    ("int4", "table", 48, 128, 16),
    ("int8", "decoder", 1024, 64, 64),
    ("int4", "decoder", 1056, CHANNEL, 1056),
    ("int4", "vision.qkv", 1024, 32, 256),  # 8 bits lose nothing in large groups
    ("int4", "vision.qkv", 1152, 128, 128),
    ("int4", "merger.fc1", 1056, 128, 32),
    ("int4", "deepstack.fc1", 4096, 128, 32),
    ("int8", "deepstack.fc1", 4096, 128, 256),
    ("fp8", "decoder", 1056, 128, 1056),
]


@pytest.mark.parametrize(("precision", "role", "inputs", "wanted", "size"), GROUPS)
def test_groups_of_each_role(precision: str, role: str, inputs: int, wanted: int, size: int) -> None:
    assert make_policy(precision, group_size=wanted).scheme(role, inputs).group_size == size


@pytest.mark.parametrize("wanted", [128, CHANNEL])
def test_inputs_without_groups_stay_floats(wanted: int) -> None:
    for role in ("decoder", "vision.patch"):
        made = make_policy("int4", group_size=wanted).scheme(role, 588)  # 4 times 147
        assert (made.bits, made.reason) == (16, f"{role}: 588 inputs are no multiple of 16")
    assert make_policy("int8", whole_rows=True).scheme("vision.patch", 588).group_size == 588


def test_zero_points_are_of_the_decoder_alone() -> None:
    policy = make_policy("int4", symmetric=False)
    assert [policy.scheme(role, 1024).symmetric for role in ROLES] == [False, False, True, True, True, False]
    assert all(make_policy("int4").scheme(role, 1024).symmetric for role in ROLES)


def test_activations_of_8_bits_are_of_the_roles_that_were_chosen() -> None:
    policy = make_policy("int4", int8_roles=("vision.fc1",))
    made = policy.scheme("vision.fc1", 1024)
    assert (made.int8_activations, made.bits, made.group_size) == (True, 8, 1024)
    assert not policy.scheme("vision.fc2", 1024).int8_activations
    assert not make_policy("fp16", int8_roles=("vision.fc1",)).scheme("vision.fc1", 1024).int8_activations


def test_schemes_of_single_matrices_count_at_their_own_path() -> None:
    own = Scheme(8, 32, reason="chosen")
    policy = replace(make_policy("int4"), chosen={"layers.1.mlp.up_proj": own})
    layers = [policy.inside(f"layers.{index}").inside("mlp") for index in (0, 1)]
    assert [inside.scheme("decoder", 1024, "up_proj").bits for inside in layers] == [4, 8]
    assert layers[1].scheme("decoder", 1024, "gate_proj").bits == 4


def test_gates_and_norms_stay_in_float32() -> None:
    assert (GATES.bits, UNQUANTIZED.bits) == (32, 32)


@pytest.mark.parametrize(
    ("bits", "group", "block"),
    [(4, 128, 128), (4, 256, 128), (4, 1056, 32), (4, 48, 16), (8, 128, 128), (8, 512, 256), (8, 384, 128),
     (3, 256, 128), (2, 256, 128), (4, 24, 24)],
)  # fmt: skip
def test_blocks_are_powers_of_two_that_kernels_take(bits: int, group: int, block: int) -> None:
    """MatMulNBits takes up to 256; lensmith's own kernels, which 2 to 4 bits have, up to 128."""
    assert Scheme(bits, group).block_size == block


@pytest.mark.parametrize(
    ("precision", "whole_rows", "grouped"),
    [("fp16", False, False), ("int8", False, True), ("int8", True, False), ("fp8", True, False), ("int4", True, True),
     ("int2", False, True)],
)  # fmt: skip
def test_which_precisions_have_groups_to_choose(precision: str, whole_rows: bool, grouped: bool) -> None:
    assert make_policy(precision, whole_rows=whole_rows).grouped == grouped


def test_unknown_names_and_sizes() -> None:
    with pytest.raises(InputError, match="unknown precision 'int5'"):
        make_policy("int5")
    with pytest.raises(InputError, match="group size 48 is not supported; expected one of 32, 64, 128, channel"):
        make_policy("int4", group_size=48)
