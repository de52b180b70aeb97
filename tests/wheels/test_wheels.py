"""Wheels for platforms that are named: their tags and libraries, and what is found to be wrong with one."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.tags import platform_tags

import build_wheels
import hatch_build
from tests.paths import ROOT
from tests.wheels.promises import EXPORTS, PROMISES, Library, broken

LINUX = "manylinux_2_28_x86_64"


class App:
    """What hatchling hands to its hooks."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def abort(self, text: str) -> None:
        raise SystemExit(text)

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


def built(app: App, folder: Path) -> dict[str, Any]:
    """What the hook adds to a wheel."""
    hook = hatch_build.KernelsHook(str(folder), {}, None, None, str(folder), "wheel", app)  # type: ignore[arg-type]
    data: dict[str, Any] = {"force_include": {}}
    hook.initialize("standard", data)
    inside = {name: Path(path).exists() for path, name in data["force_include"].items()}
    hook.finalize("standard", data, "")
    return {**data, "inside": inside}


@pytest.mark.parametrize(
    ("tag", "library"),
    [(LINUX, "kernels.so"), ("musllinux_1_2_aarch64", "kernels.so"), ("macosx_14_0_arm64", "kernels.dylib"),
     ("win_amd64", "kernels.dll"), ("win_arm64", "kernels.dll")],
)  # fmt: skip
def test_a_platform_is_named_by_the_environment(tag: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hatch_build.WANTED, tag)
    assert hatch_build.platform_tag() == tag
    assert hatch_build.library_name() == library


def test_a_wheel_made_here_is_for_systems_like_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index takes manylinux_2_36_x86_64, and pip installs it here, but neither takes linux_x86_64."""
    monkeypatch.delenv(hatch_build.WANTED, raising=False)
    assert hatch_build.platform_tag() in set(platform_tags())
    assert not hatch_build.platform_tag().startswith("linux_")


def test_without_a_compiler_a_wheel_has_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(hatch_build.WANTED, raising=False)
    monkeypatch.setenv("CC", "no-such-compiler")
    app = App()
    data = built(app, tmp_path)
    assert "tag" not in data
    assert set(data["inside"]) == {"lensmith/__init__.py", "lensmith/py.typed"}
    assert "kernels are left out" in app.warnings[0]


@pytest.mark.parametrize(("tag", "compiler"), [(LINUX, "no-such-compiler"), ("linux_s390x", "cc")])
def test_a_named_platform_gets_kernels_or_no_wheel(
    tag: str, compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(hatch_build.WANTED, tag)
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(SystemExit, match=f"no wheel for {tag}: there"):
        built(App(), tmp_path)


def test_each_wheel_is_compiled_for_its_tag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = list[tuple[list[str], Mapping[str, str]]]()

    def run(command: list[str], *, env: Mapping[str, str], **rest: Any) -> None:
        ran.append((command, env))

    monkeypatch.delenv(hatch_build.WANTED, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    build_wheels.main(["--out", str(tmp_path)])
    *wheels, (sdist, plain) = ran
    assert sdist[sdist.index("--target") + 1] == "sdist"
    assert hatch_build.WANTED not in plain
    targets = {env[hatch_build.WANTED]: shlex.split(env["CC"])[-1] for _, env in wheels}
    assert targets == build_wheels.PLATFORMS
    assert all(command[command.index("--directory") + 1] == str(tmp_path) for command, _ in ran)
    assert set(targets) == set(PROMISES)


def test_an_unknown_platform_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_wheels.main(["win32"])
    assert "no wheel is built for win32; expected some of manylinux_2_28_x86_64" in capsys.readouterr().err


RIGHT = {
    "manylinux_2_28_x86_64": Library("X86_64", (2, 14), frozenset(EXPORTS), frozenset({"libc.so.6", "libm.so.6"})),
    "macosx_14_0_arm64": Library("ARM64", (14, 0), frozenset(EXPORTS), frozenset({"/usr/lib/libSystem.B.dylib"})),
    "win_amd64": Library("AMD64", (6, 0), frozenset(EXPORTS), frozenset({"KERNEL32.dll", "api-ms-win-crt-heap.dll"})),
}


@pytest.mark.parametrize("tag", RIGHT)
def test_what_keeps_its_promise(tag: str) -> None:
    assert broken(RIGHT[tag], PROMISES[tag]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": "ARM64"}, "it is for ARM64, expected"),
        ({"least": (20, 0)}, "it wants version (20, 0) of its system"),
        ({"exports": frozenset(EXPORTS - {"lensmith_operator"})}, "it lacks lensmith_operator"),
        ({"needs": frozenset({"libonnxruntime.so.1"})}, "it needs libonnxruntime.so.1, which"),
        ({"faults": ("it is not signed",)}, "it is not signed"),
    ],
)
def test_what_breaks_its_promise(changes: dict[str, Any], said: str) -> None:
    (wrong,) = broken(replace(RIGHT["win_amd64"], **changes), PROMISES["win_amd64"])
    assert said in wrong


def wheel_of(folder: Path, tag: str, library: str, data: bytes, said: str) -> Path:
    path = folder / f"lensmith-0.1.0-py3-none-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("lensmith-0.1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: py3-none-{said}\n")
        wheel.writestr(f"lensmith/runtimes/engines/kernels/{library}", data)
    return path


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the check says, in a process of its own: lief complains at the end of one that still refers to it."""
    if importlib.util.find_spec("lief") is None:
        pytest.skip("needs lief, of lensmith[dev]")
    command = [sys.executable, "-m", "tests.wheels.check_wheels", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="for Linux on x86-64")
def test_a_wheel_is_read(tmp_path: Path) -> None:
    if reason := hatch_build.cannot_compile():
        pytest.skip(reason)
    library = hatch_build.LIBRARY.read_bytes()  # as this machine's compiler made it
    path = wheel_of(tmp_path, LINUX, "kernels.so", library, LINUX)
    ran = checked(tmp_path)
    _, row = ran.stdout.splitlines()
    tag, size, _, machine, least, exports, *needs = row.split()
    assert (tag, size, machine, exports) == (LINUX, f"{path.stat().st_size / 1e6:.2f}", "X86_64", str(len(EXPORTS)))
    assert needs == ["libc.so.6"] or needs[0] == "libc.so.6,"
    newer = tuple(map(int, least.split("."))) > (2, 28)  # as this machine's C library may be
    assert ran.returncode == (1 if newer else 0)


@pytest.mark.parametrize(("library_name", "said"), [("kernels.dll", LINUX), ("kernels.so", "any")])
def test_a_wheel_with_another_name_or_tag(library_name: str, said: str, tmp_path: Path) -> None:
    wheel_of(tmp_path, LINUX, library_name, b"", said)
    ran = checked(tmp_path)
    assert ran.returncode == 1
    assert f"its kernels are ['lensmith/runtimes/engines/kernels/{library_name}'] and its tags" in ran.stderr
    assert f"Tag: py3-none-{said}" in ran.stderr
