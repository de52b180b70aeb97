"""Target profiles and the warning for CPUs that a bundle was not built for."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from lensmith.runtimes.process.cpu import cpu_features, told_if_lacking
from lensmith.targets.device import STAND_INS
from lensmith.targets.errors import InputError
from lensmith.targets.profile import load_target, target_names, target_text

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
    assert target.device.memory_bytes >= 8_000_000_000


def test_unknown_target_names_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean 'cpu'"):
        load_target("cpus")


def test_an_unknown_target_lists_all() -> None:
    with pytest.raises(InputError) as raised:
        load_target("abacus")
    assert all(name in str(raised.value) for name in target_names())


DEVICES = ("raspberry-pi-5", "raspberry-pi-4", "rk3588", "intel-n100", "laptop-avx2", "server-avx512", "apple-m2",
           "snapdragon-8", "jetson-orin-nano", "jetson-orin-nx", "jetson-orin-agx", "jetson-thor", "t4", "rtx-4060",
           "rtx-5090", "dgx-spark", "cpu")  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_of_a_device_has_its_source(name: str) -> None:
    """Beside it, or in a comment above."""
    lines = target_text(name).partition("[device]")[2].splitlines()
    for key in ("memory_bytes", "usable_bytes", "read_bytes_per_s", "float"):
        at = next(index for index, line in enumerate(lines) if line.startswith(key))
        above = [line for line in lines[:at] if line.startswith("#")]
        assert "#" in lines[at] or above or name in ("cpu", *JETSONS_AND_CARDS), lines[at]


JETSONS_AND_CARDS = (
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-orin-agx",
    "jetson-thor",
    "t4",
    "rtx-4060",
    "rtx-5090",
    "dgx-spark",
)  # whose name is a size of memory


@pytest.mark.parametrize("name", target_names())
def test_devices_are_plausible(name: str) -> None:
    """Integers are no slower than floats, and what reads more computes more."""
    target = load_target(name)
    device = target.device
    assert 0.4 * device.memory_bytes < device.usable_bytes < device.memory_bytes
    assert device.rate("int4") >= device.rate("float32") >= device.rate("attention")
    assert device.rate("int4") > 2 * device.read_bytes_per_s
    assert set(device.formats) == ({"tensorrt"} if target.gpu else {"onnx"} if target.halves else {"onnx", "gguf"})


def test_rates_stand_in_for_others() -> None:
    device = load_target("cpu").device
    only = replace(device, operations_per_s={"float32": 5.0})
    assert {name: only.rate(name) for name in STAND_INS} == dict.fromkeys(STAND_INS, 5.0)
    more = replace(device, operations_per_s={"float32": 5.0, "int8": 7.0, "attention": 3.0})
    assert (more.rate("int4"), more.rate("int8"), more.rate("float16"), more.rate("attention")) == (7.0, 7.0, 5.0, 3.0)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """It is a target like those that come along, named as the file is."""
    path = tmp_path / "mine.toml"
    path.write_text(target_text("raspberry-pi-5"))
    assert load_target(str(path)) == replace(load_target("raspberry-pi-5"), name="mine")


@pytest.mark.parametrize(("old", "new", "said"), [
    ("usable_bytes = 7_000_000_000", "usable_bytes = 9_000_000_000", "more than memory_bytes"),
    ("threads = 4", "threads = 0", "above zero"), ("threads = 4", "thread = 4", "did you mean 'threads'"),
    ("threads = 4", 'threads = "four"', r"Expected `int`, got `str` - at `\$.device.threads`"),
    ("float32 = 9.2e10", "", "neither float32 nor float16"), ("int8 =", "int9 =", "did you mean 'int8'"),
    ('formats = ["onnx", "gguf"]', "formats = []", "has no formats"), ("[8, 4]", "[8, 5]", "bits has 5; expected some"),
    ('"gguf"', '"ggml"', "did you mean 'gguf'"), ("group_size = 128", "group_size = 0", "group_size below 1"),
    ("dialect", "dialekt", "did you mean 'dialect'"), ("[device]", "[device", "Expected ']'"),
])  # fmt: skip
def test_a_file_that_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(target_text("raspberry-pi-5").replace(old, new))
    with pytest.raises(InputError, match=rf"mine.toml is wrong: .*{said}.*lensmith targets cpu"):
        load_target(str(path))


@pytest.mark.parametrize("name", ["absent.toml", "folder.toml"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load_target(str(tmp_path / name))


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
