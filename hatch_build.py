"""Compiles the kernels when lensmith is installed or built, where there is a C compiler; without one it goes on.

An editable install gets the library in place, a wheel gets it inside and is then one for this platform. An editable
install also needs the links in .src/lensmith, which are made where git could not.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent / "runtimes" / "engines" / "kernels"
LIBRARY = FOLDER / "kernels.so"
PACKAGE = Path(__file__).parent / ".src" / "lensmith"
LINKED = ("calibration", "cli", "exporters", "runtimes", "serving", "targets")
# Nothing but what the sources say is fused: each instruction set must give the same bits.
SAME_BITS = ["-ffp-contract=off", "-fno-math-errno"]
FLAGS = ["-O3", "-fPIC", "-std=gnu11", "-Wall", "-Wextra", *SAME_BITS, "-fvisibility=hidden"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
# Files that run on every processor and ask what this one can do, then those of each instruction set with its flags.
COMMON = ("library.c", "operator.c", "cpu.c", "instruction_set.c", "matmul_int.c", "attention.c")
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "avx2.c": AVX2,
        "avxvnni.c": [*AVX2, "-mavxvnni"],
        "avx512.c": AVX512,
        "avx512bf16.c": [*AVX512, "-mavx512bf16"],
    },
    "aarch64": {
        "neon.c": [],
        "dotprod.c": ["-march=armv8.2-a+dotprod"],
    },
}
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names for them


def sources(machine: str) -> dict[str, list[str]]:
    """The files of the library for a kind of processor, each with the flags that it alone needs."""
    return {**{name: [] for name in COMMON}, **INSTRUCTION_SETS[MACHINES.get(machine.lower(), machine)]}


def cannot_compile() -> str:
    """Why there can be no kernels here, or nothing where there can."""
    if platform.system() != "Linux" or platform.machine() not in INSTRUCTION_SETS:
        return f"there are no kernels for {platform.system()} on {platform.machine()}"
    command = _compiler()
    if not command or shutil.which(command[0]) is None:
        return "there is no C compiler (set CC, or install gcc)"
    return ""


def is_current() -> bool:
    """Whether the library is there and newer than all that it is made from."""
    sources = [path for path in FOLDER.iterdir() if path.suffix in (".c", ".h")]
    return LIBRARY.is_file() and all(
        path.stat().st_mtime <= LIBRARY.stat().st_mtime for path in (*sources, Path(__file__))
    )


def compile_library(target: Path = LIBRARY) -> str:
    """Compile the kernels; returns why there are none, or nothing when `target` was written."""
    reason = cannot_compile()
    if reason:
        return reason
    command = _compiler()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(command, Path(folder), target)
        except subprocess.CalledProcessError as error:
            return f"{shlex.join(command)} failed: {error.stderr.strip()[-300:]}"
    return ""


def make_links(package: Path = PACKAGE) -> str:
    """Makes the links through which an editable install finds the folders; returns why it cannot, or nothing.

    With core.symlinks=false, as on Windows, git writes each as a small file that holds the path.
    """
    for name in LINKED:
        link, target = package / name, Path("../..") / name
        if link.is_dir() and link.samefile(package / target):
            continue
        if link.is_dir() or (link.is_file() and link.read_bytes().strip() != target.as_posix().encode()):
            return f"{link} must be a link to {target.as_posix()}, but something else is there: remove it and try again"
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
        except OSError as error:
            link.write_text(target.as_posix())  # as git left it
            return (
                f"{link} must be a link to {target.as_posix()}, and none can be made here ({error.strerror}): clone "
                "with `git -c core.symlinks=true clone` where links are allowed (on Windows in developer mode)"
            )
    return ""


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def _compile(command: list[str], folder: Path, target: Path) -> None:
    files = sources(platform.machine())
    objects = {name: folder / f"{name}.o" for name in files}

    def compile_one(name: str) -> None:
        _run([*command, "-c", *FLAGS, *files[name], str(FOLDER / name), "-o", str(objects[name])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, files))
    made = folder / "kernels.so"
    _run([*command, "-shared", *map(str, objects.values()), "-lm", "-o", str(made)])
    part = target.with_suffix(".part")
    shutil.copyfile(made, part)
    os.replace(part, target)  # at once: a process may have the old one mapped


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook, see `[tool.hatch.build.hooks.custom]` in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        if version == "editable":  # has the whole package through the links in .src, and nothing may hide that
            unlinked = make_links()
            if unlinked:
                self.app.abort(unlinked)
        else:
            for name in ("__init__.py", "py.typed"):
                build_data["force_include"][str(PACKAGE / name)] = f"lensmith/{name}"
        reason = compile_library()
        if reason:
            LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"lensmith's own kernels are left out: {reason}; ONNX Runtime's are used")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if version != "editable":
            build_data["force_include"][str(LIBRARY)] = "lensmith/runtimes/engines/kernels/kernels.so"


def main(arguments: list[str]) -> int:
    """Compile, or with --where-possible leave it where that cannot be; the exit code."""
    unmet = cannot_compile()
    if unmet and "--where-possible" in arguments:
        print(f"no kernels: {unmet}")
        return 0
    reason = compile_library()
    if reason:
        print(f"no kernels: {reason}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
