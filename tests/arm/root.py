"""What an emulated Arm system consists of, in build/arm: qemu, Debian's Python, wheels for aarch64 and lensmith."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.arm.debian import RELEASE, Unavailable, unpack
from tests.paths import ROOT

HOME = ROOT / "build" / "arm"
QEMU = "qemu-aarch64-static"
PYTHON = "3.11"  # of this release
PACKAGES = (f"python{PYTHON}", "libstdc++6")
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
HOST = {"x86_64": "amd64", "aarch64": "arm64"}
SOURCES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".src", "calibration", "cli", "exporters",
           "runtimes", "serving", "targets")  # fmt: skip


@dataclass(frozen=True)
class ArmRoot:
    """Folders of an emulated system: Debian's files, and what Python imports from."""

    qemu: Path
    system: Path
    packages: Path
    lensmith: Path

    @property
    def python(self) -> Path:
        return self.system / "usr" / "bin" / f"python{PYTHON}"


def arm_root() -> ArmRoot:
    """The emulated system, with lensmith as it stands in this checkout; what was fetched before is taken again.

    Raises Unavailable where something of it cannot be had.
    """
    if platform.system() != "Linux":
        raise Unavailable(f"Arm is emulated under Linux alone, and this is {platform.system()}")
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "lock", "w") as lock:  # several workers of pytest may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        qemu = _qemu()
        system = _once("system", f"{RELEASE} {PACKAGES}", lambda to: unpack(PACKAGES, "arm64", to))
        constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        packages = _once("packages", f"{constraints} {_dependencies()} {WHEELS}", _install)
        return ArmRoot(qemu, system, packages, _once("lensmith", _fingerprint(), _install_lensmith))


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


def _install(folder: Path) -> None:
    platforms = [word for name in WHEELS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *platforms,
               "--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp",
               "-c", str(ROOT / "constraints.txt"), *_dependencies()]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        reason = ran.stderr.strip().splitlines()[-1:]
        raise Unavailable(f"wheels for aarch64 cannot be had here: pip: {' '.join(reason)}")


def _fingerprint() -> str:
    """Changes with each file that lensmith's wheel is made from."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for name in SOURCES:
        path = ROOT / name
        yield from (each for each in sorted(path.rglob("*")) if _is_source(each)) if path.is_dir() else [path]


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".part")


def _install_lensmith(folder: Path) -> None:
    """Its wheel, built in a copy: the build replaces the library of kernels, which here is this machine's."""
    with _copy(folder.with_name("sources")) as sources:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(sources / "dist")]
        subprocess.run(command, cwd=sources, env={**os.environ, "CC": "false"}, check=True, capture_output=True)
        zipfile.ZipFile(next((sources / "dist").glob("*.whl"))).extractall(folder)


@contextmanager
def _copy(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    for path in _files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    yield folder
    shutil.rmtree(folder)
