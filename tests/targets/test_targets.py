"""Target profiles and the warning for CPUs that a bundle was not built for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lensmith.runtimes.process.cpu import cpu_features, told_if_lacking
from lensmith.targets.errors import InputError
from lensmith.targets.profile import load_target, target_names

WITH_FP8 = {"8.9", "11.0", "12.0", "12.1"}
RTX_CAPABILITIES = {"7.5", "8.6", "8.9", "12.0", "12.1"}  # that TensorRT-RTX 1.7 supports, by NVIDIA's matrix


@pytest.mark.parametrize("name", target_names())
def test_profiles_load(name: str) -> None:
    profile = load_target(name)
    assert profile.dialect in (("ort", "cuda") if profile.gpu is None else ("tensorrt",))
    assert profile.halves == (profile.dialect != "ort")
    assert bool(profile.int8_activations) == bool(profile.cpu_features)  # full int8 products need dot products


@pytest.mark.parametrize("name", [name for name in target_names() if load_target(name).gpu is not None])
def test_gpu_targets_are_whole(name: str) -> None:
    target = load_target(name)
    gpu = target.gpu
    assert gpu is not None
    assert (gpu.builds_here or not gpu.has_engines) == set(gpu.capabilities).issubset(RTX_CAPABILITIES)
    assert ("fp8" not in target.lacks) == set(gpu.capabilities).issubset(WITH_FP8)
    assert target.activations == ("float16" if gpu.capabilities == ("7.5",) else "bfloat16")  # Turing has no bfloat16
    assert ({"int4", "int8"} <= set(target.lacks)) == (gpu.capabilities == ("7.5",))
    assert gpu.memory_bytes >= 8_000_000_000


def test_unknown_target_names_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean 'cpu'"):
        load_target("cpus")


def test_features_are_read(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx512_vnni\n")
    (tmp_path / "arm").write_text("Features\t: fp asimddp\n")
    assert cpu_features(tmp_path / "x86") == {"fpu", "avx512_vnni"}
    assert cpu_features(tmp_path / "arm") == {"fp", "asimddp"}
    assert cpu_features(tmp_path / "absent") == frozenset()


def test_a_cpu_without_dot_products_is_told_to_be_slower(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert told_if_lacking(["avx_vnni"], frozenset({"avx2"}))
    assert "none of avx_vnni: 8-bit products are as exact, but slower" in caplog.text
    assert not told_if_lacking(["avx_vnni"], frozenset({"avx2", "avx_vnni"}))
    assert not told_if_lacking(["avx_vnni", "avx512_vnni"], frozenset({"avx2", "avx512_vnni"}))  # one of them is enough
    assert not told_if_lacking(["avx_vnni"], frozenset())  # nothing is known
    assert not told_if_lacking([], frozenset({"avx2"}))
