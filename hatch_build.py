"""Compiles the kernels when lensmith is installed or built, where there is a C compiler; without one it goes on.

An editable install gets the library in place, a wheel gets it inside and is then one for this platform: on Linux, for
systems whose C library is as new as the one here. LENSMITH_PLATFORM in the environment names another platform by the
tag of its wheel, and CC a compiler for it; build_wheels.py does that for all. An editable install also needs the links
in .src/lensmith, which are made where git could not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

WANTED = "LENSMITH_PLATFORM"
ENDINGS = {"win": "dll", "macosx": "dylib"}  # of shared libraries, by how a platform's tag begins; elsewhere so
FOLDER = Path(__file__).parent / "runtimes" / "engines" / "kernels"
PACKAGE = Path(__file__).parent / ".src" / "lensmith"
LINKED = ("calibration", "cli", "exporters", "runtimes", "serving", "targets")
# Nothing but what the sources say is fused: each instruction set must give the same bits.
SAME_BITS = ["-ffp-contract=off", "-fno-math-errno"]
FLAGS = ["-O3", "-fPIC", "-std=gnu11", "-Wall", "-Wextra", *SAME_BITS, "-fvisibility=hidden"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
# Files that run on every processor and ask what this one can do, then those of each instruction set with its flags.
COMMON = ("library.c", "operator.c", "cpu.c", "instruction_set.c", "matmul_int.c", "attention.c", "cached_attention.c",
          "norm_rotary.c")  # fmt: skip
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "avx2.c": AVX2,
        "avxvnni.c": [*AVX2, "-mavxvnni"],
        "avx512.c": AVX512,
        "avx512bf16.c": [*AVX512, "-mavx512bf16"],
    },
    "aarch64": {
        "neon.c": [],
        "dotprod.c": ["-mcpu=tsv110+dotprod"],  # an ARMv8.2-A by a name that gcc, clang and zig all take
        "i8mm.c": ["-mcpu=tsv110+dotprod+i8mm+bf16"],
    },
}
OTHER_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


def platform_tag() -> str:
    """What the library is made for, as the tag of a wheel says it: "manylinux_2_28_x86_64", "win_amd64"."""
    here = sorted(platform_tags(), key=lambda tag: tag.startswith("linux_"))  # which indexes refuse
    return os.environ.get(WANTED) or here[0]


def machine() -> str:
    """The kind of processor that the library is made for: "x86_64", "aarch64"."""
    tag = platform_tag()
    found = next((name for name in (*INSTRUCTION_SETS, *OTHER_NAMES) if tag.endswith(f"_{name}")), tag)
    return OTHER_NAMES.get(found, found)


def sources(processor: str) -> dict[str, list[str]]:
    """The files of the library for a kind of processor, each with the flags that it alone needs."""
    return {**{name: [] for name in COMMON}, **INSTRUCTION_SETS[processor]}


def library_name() -> str:
    """What `lensmith.runtimes.engines.native` looks for."""
    ending = next((ending for system, ending in ENDINGS.items() if platform_tag().startswith(system)), "so")
    return f"kernels.{ending}"


LIBRARY = FOLDER / library_name()


def cannot_compile() -> str:
    """Why there can be no kernels here, or nothing where there can."""
    if machine() not in INSTRUCTION_SETS:
        return f"there are no kernels for {platform_tag()}"
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
    files = sources(machine())
    objects = {name: folder / f"{name}.o" for name in files}

    def compile_one(name: str) -> None:
        _run([*command, "-c", *FLAGS, *files[name], str(FOLDER / name), "-o", str(objects[name])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, files))
    # In its folder, whose name would be in the library on macOS
    _run([*command, "-shared", "-s", *map(str, objects.values()), "-lm", "-o", target.name], folder)
    part = target.with_suffix(".part")
    shutil.copyfile(folder / target.name, part)
    os.replace(part, target)  # at once: a process may have the old one mapped


def _run(command: list[str], folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook, see `[tool.hatch.build.hooks.custom]` in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        if version == "editable":  # has the whole package through the links in .src, and nothing may hide that
            unlinked = make_links()
            if unlinked:
                self.app.abort(unlinked)
            if not self._made(LIBRARY):
                LIBRARY.unlink(missing_ok=True)
            return
        self._folder = tempfile.TemporaryDirectory()
        for name in ("__init__.py", "py.typed"):
            build_data["force_include"][str(PACKAGE / name)] = f"lensmith/{name}"
        library = Path(self._folder.name) / library_name()
        if self._made(library):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"
            build_data["force_include"][str(library)] = f"lensmith/runtimes/engines/kernels/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel" and version != "editable":
            self._folder.cleanup()

    def _made(self, library: Path) -> bool:
        """Whether the kernels could be compiled. Without them, a wheel for a platform that was named is none."""
        reason = compile_library(library)
        if reason and WANTED in os.environ:
            self.app.abort(f"no wheel for {platform_tag()}: {reason}")
        if reason:
            self.app.display_warning(f"lensmith's own kernels are left out: {reason}; ONNX Runtime's are used")
        return not reason


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
