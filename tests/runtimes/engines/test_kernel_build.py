"""How kernels are compiled: again when a source changes, with an exit code that is right, and by make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hatch_build
from tests.paths import ROOT

KERNELS = "runtimes/engines/kernels/kernels.so"


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `main` writes; the library of this checkout stays as it is."""
    made = tmp_path / "kernels.so"
    monkeypatch.setattr(hatch_build.compile_library, "__defaults__", (made,))
    return made


def test_exit_codes(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if hatch_build.cannot_compile():
        pytest.skip(hatch_build.cannot_compile())
    monkeypatch.setattr(hatch_build, "FLAGS", ["-O0", *hatch_build.FLAGS[1:]])  # which takes a fifth of the time
    assert hatch_build.main([]) == 0
    assert target.is_file()
    assert not capsys.readouterr().err
    monkeypatch.setattr(hatch_build, "FLAGS", ["--no-such-option"])
    for arguments in ([], ["--where-possible"]):  # a compiler that fails is no reason to go on without kernels
        assert hatch_build.main(arguments) == 1
        assert "--no-such-option" in capsys.readouterr().err


def test_without_a_compiler(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert hatch_build.main([]) == 1
    assert hatch_build.main(["--where-possible"]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert text.startswith("no kernels: ")
    assert not target.exists()


def test_script_leaves_with_the_code() -> None:
    ran = subprocess.run(
        [sys.executable, "hatch_build.py"], cwd=ROOT, env={**os.environ, "CC": "no-such-compiler"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("no kernels: ")


def test_library_is_current_while_no_source_is_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one.c", "one.h", "kernels.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(hatch_build, "FOLDER", tmp_path)
    monkeypatch.setattr(hatch_build, "LIBRARY", tmp_path / "kernels.so")
    assert hatch_build.is_current()
    for name in ("one.c", "one.h"):
        now = (tmp_path / "kernels.so").stat().st_mtime
        os.utime(tmp_path / name, (now + 1, now + 1))
        assert not hatch_build.is_current()
        os.utime(tmp_path / name, (now, now))
    (tmp_path / "kernels.so").unlink()
    assert not hatch_build.is_current()


@pytest.mark.parametrize(
    "changed", ["runtimes/engines/kernels/avx2.c", "runtimes/engines/kernels/chunk.h", "hatch_build.py"]
)
def test_make_compiles_what_changed(changed: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    for stamp in ("demo-ready", "ready"):
        (tmp_path / stamp).touch()
    command = ["make", "--dry-run", f"VENV={tmp_path}", "--old-file=setup", f"--what-if={changed}", "test"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    compiled, tested = (ran.stdout.find(text) for text in ("hatch_build.py --where-possible", "-m pytest"))
    assert 0 <= compiled < tested
