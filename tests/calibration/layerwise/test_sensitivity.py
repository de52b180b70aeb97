"""Bits for each matrix from errors and divergences that are given, worked out by hand."""

from __future__ import annotations

import pytest
from lensmith.calibration.layerwise.sensitivity import (
    Sensitivity,
    mixed_schemes,
    options_of,
    unit_of,
)
from lensmith.exporters.storage.scheme import Scheme
from lensmith.targets.errors import InputError

# The layer's divergence at 4 bits is 1 nat, three quarters of it by its first matrix; 8 bits leave a hundredth of each.
FOUND = {
    "layers.0": Sensitivity(1.0, {"layers.0.a": (0.2, 0.002), "layers.0.b": (0.4, 0.004)},
                            {"layers.0.a": 0.75, "layers.0.b": 0.25}),
}  # fmt: skip
SCHEMES = {"layers.0.a": Scheme(4, 32), "layers.0.b": Scheme(4, 32)}
SHAPES = {"layers.0.a": (4, 32), "layers.0.b": (8, 32)}  # 72 and 144 bytes at 4 bits, 136 and 272 at 8


def chosen(max_bytes: int | None, max_kl: float | None) -> list[int]:
    found = mixed_schemes(FOUND, SCHEMES, SHAPES, max_bytes=max_bytes, max_kl=max_kl)
    return [found[name].bits for name in SCHEMES]


@pytest.mark.parametrize(("max_kl", "bits"), [(2.0, [4, 4]), (0.76, [8, 4]), (0.3, [8, 4]), (0.2, [8, 8]), (0, [8, 8])])
def test_fewest_bytes_within_a_divergence(max_kl: float, bits: list[int]) -> None:
    """4 and 8 bits are 0.7525 nats in 344 bytes, 8 and 4 bits 0.2575 in 280: the latter where both will do."""
    assert chosen(None, max_kl) == bits


@pytest.mark.parametrize(
    ("max_bytes", "bits"), [(216, [4, 4]), (279, [4, 4]), (280, [8, 4]), (407, [8, 4]), (408, [8, 8])]
)
def test_least_divergence_within_bytes(max_bytes: int, bits: list[int]) -> None:
    assert chosen(max_bytes, None) == bits


def test_limits_that_no_mix_keeps() -> None:
    with pytest.raises(InputError, match="no mix of bits will do"):
        chosen(215, None)


def test_what_was_predicted_is_the_reason() -> None:
    found = mixed_schemes(FOUND, SCHEMES, SHAPES, max_bytes=None, max_kl=0.3)
    assert found["layers.0.a"].reason == "8 bits in groups of 32: predicted KL 0.0075"
    assert found["layers.0.b"].reason == "4 bits in groups of 32: predicted KL 0.25"


def test_options_begin_with_the_cheapest() -> None:
    """From the bits on that a matrix has, in all groups that its columns divide into."""
    found = [(scheme.bits, scheme.group_size) for scheme in options_of(Scheme(3, 128, symmetric=False), 192)]
    assert found == [(3, 64), (3, 32), (4, 64), (4, 32), (8, 64), (8, 32)]
    assert [scheme.bits for scheme in options_of(Scheme(8, 32), 96)] == [8]
    assert not options_of(Scheme(3, 128, symmetric=False), 192)[0].symmetric


def test_units_are_layers() -> None:
    assert unit_of("model.layers.12.mlp.experts.3.up.weight") == "model.layers.12"
    assert unit_of("model.embed_tokens.weight") == "model.embed_tokens.weight"
