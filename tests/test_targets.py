"""Target profiles and the warning for CPUs that a bundle was not built for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lensmith.runtimes.cpu import cpu_features, warn_if_lacking
from lensmith.targets.errors import InputError
from lensmith.targets.profile import load_target, target_names


@pytest.mark.parametrize("name", target_names())
def test_profiles_load(name: str) -> None:
    profile = load_target(name)
    assert profile.dialect == "ort"
    assert bool(profile.int8_activations) == bool(profile.cpu_features)  # full int8 products need dot products


def test_unknown_target_names_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean 'cpu'"):
        load_target("cpus")


def test_features_are_read(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx512_vnni\n")
    (tmp_path / "arm").write_text("Features\t: fp asimddp\n")
    assert cpu_features(tmp_path / "x86") == {"fpu", "avx512_vnni"}
    assert cpu_features(tmp_path / "arm") == {"fp", "asimddp"}
    assert cpu_features(tmp_path / "absent") == frozenset()


def test_a_cpu_without_dot_products_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warn_if_lacking(["avx_vnni"], frozenset({"avx2"}))
    assert "--target cpu-any" in caplog.text
    assert not warn_if_lacking(["avx_vnni"], frozenset({"avx2", "avx_vnni"}))
    assert not warn_if_lacking(["avx_vnni"], frozenset())  # nothing is known
    assert not warn_if_lacking([], frozenset({"avx2"}))
