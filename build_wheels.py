"""Builds the wheels of all platforms and the sdist on one machine; zig compiles the kernels for each.

    python build_wheels.py [--out build/wheels] [TAG ...]

Needs the packages of lensmith's extra `wheels`. Tags are those of PLATFORMS; without any, all and the sdist are built.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hatch_build import WANTED

ROOT = Path(__file__).parent
# The tag of a wheel, and what zig compiles for: with the C library and the system's version that the tag promises.
PLATFORMS = {
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "macosx_14_0_arm64": "aarch64-macos.14.0",
    "win_amd64": "x86_64-windows-gnu",
    "win_arm64": "aarch64-windows-gnu",
}


def build_wheel(tag: str, out: Path) -> None:
    """Write the wheel of a platform into a folder."""
    compiler = shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", PLATFORMS[tag]])
    _hatchling("wheel", out, {WANTED: tag, "CC": compiler})


def build_sdist(out: Path) -> None:
    """Write the source distribution into a folder."""
    _hatchling("sdist", out, {})


def _hatchling(kind: str, out: Path, settings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out.resolve())]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tags", nargs="*", metavar="TAG", help=", ".join(PLATFORMS))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels")
    given = parser.parse_args(arguments)
    if unknown := set(given.tags) - set(PLATFORMS):
        parser.error(f"no wheel is built for {', '.join(sorted(unknown))}; expected some of {', '.join(PLATFORMS)}")
    for tag in given.tags or PLATFORMS:
        build_wheel(tag, given.out)
    if not given.tags:
        build_sdist(given.out)


if __name__ == "__main__":
    main()
