"""What an emulated Arm system consists of, in build/arm: qemu, Debian's Python, wheels for aarch64 and lensmith."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lensmith.runtimes.storage.locks import held

from build_wheels import PLATFORMS
from tests.arm.debian import RELEASE, Unavailable, unpack
from tests.paths import ROOT

HOME = ROOT / "build" / "arm"
QEMU = "qemu-aarch64-static"
PYTHON = "3.11"  # of this release
PACKAGES = (f"python{PYTHON}", "libstdc++6")
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
HOST = {"x86_64": "amd64", "aarch64": "arm64"}
TAG = "manylinux_2_28_aarch64"
SOURCES = ("pyproject.toml", "hatch_build.py", "build_wheels.py", "README.md", "LICENSE", ".src", "calibration", "cli",
           "exporters", "runtimes", "serving", "targets")  # fmt: skip


@dataclass(frozen=True)
class ArmRoot:
    """Folders of an emulated system: Debian's files, what Python imports from, and zig, which compiles for it."""

    qemu: Path
    system: Path
    packages: Path
    zig: Path
    lensmith: Path

    @property
    def python(self) -> Path:
        return self.system / "usr" / "bin" / f"python{PYTHON}"

    @property
    def compiler(self) -> list[str]:
        """The command of a C compiler."""
        return [str(self.zig / "ziglang" / "zig"), "cc", "-target", PLATFORMS[TAG]]


def arm_root() -> ArmRoot:
    """The emulated system, with lensmith as it stands in this checkout; what was fetched before is taken again.

    Raises Unavailable where something of it cannot be had.
    """
    if platform.system() != "Linux":
        raise Unavailable(f"Arm is emulated under Linux alone, and this is {platform.system()}")
    HOME.mkdir(parents=True, exist_ok=True)
    with held(HOME, wait=True):  # several workers of pytest may want it at once
        qemu = _qemu()
        system = _once("system", f"{RELEASE} {PACKAGES}", lambda to: unpack(PACKAGES, "arm64", to))
        constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        packages = _once("packages", f"{constraints} {_dependencies()} {WHEELS}", _install_packages)
        zig = _once("zig", constraints, lambda to: _pip(to, "ziglang"))
        state = _fingerprint()  # another one may be in use by a long run
        lensmith = _once(f"lensmith-{state}", state, lambda to: _install_lensmith(to, zig))
        return ArmRoot(qemu, system, packages, zig, lensmith)


def _qemu() -> Path:
    if installed := shutil.which(QEMU):
        return Path(installed)
    host = HOST.get(platform.machine(), "")
    return _once("qemu", RELEASE, lambda to: unpack(["qemu-user-static"], host, to)) / "usr" / "bin" / QEMU


def _once(name: str, wish: str, make: Callable[[Path], None]) -> Path:
    """A folder made for this wish; another one that stands there was made for an older wish, and goes."""
    folder, stamp = HOME / name, HOME / f"{name}.made-for"
    digest = hashlib.sha256(wish.encode()).hexdigest()
    if not (folder.is_dir() and stamp.is_file() and stamp.read_text() == digest):
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        stamp.write_text(digest)
    return folder


def _dependencies() -> list[str]:
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return found


def _install_packages(folder: Path) -> None:
    platforms = [word for name in WHEELS for word in ("--platform", name)]
    _pip(folder, *platforms, "--python-version", PYTHON, "--implementation", "cp", *_dependencies())


def _pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "--only-binary", ":all:",
               "-c", str(ROOT / "constraints.txt"), *arguments]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        reason = ran.stderr.strip().splitlines()[-1:]
        raise Unavailable(f"wheels that Arm is emulated with cannot be had here: pip: {' '.join(reason)}")


def _fingerprint() -> str:
    """Changes with each file that lensmith's wheel is made from."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _files() -> Iterator[Path]:
    for name in SOURCES:
        path = ROOT / name
        yield from (each for each in sorted(path.rglob("*")) if _is_source(each)) if path.is_dir() else [path]


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".part")


def _install_lensmith(folder: Path, zig: Path) -> None:
    """Its wheel, as `make wheels` builds it."""
    out = folder.with_name("wheels")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "build_wheels.py", TAG, "--out", str(out)]
    path = os.pathsep.join([str(zig), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    zipfile.ZipFile(next(out.glob("*.whl"))).extractall(folder)
