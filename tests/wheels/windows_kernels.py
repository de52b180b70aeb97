"""Compares the bits of kernels compiled for Windows, under Wine, with those of this machine, on many cases.

    python -m tests.wheels.windows_kernels

Needs Debian's wine64 and ziglang.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np

from build_wheels import PLATFORMS
from tests.fuzz import driver
from tests.fuzz.cases import attention, product, right_case, wrong_case
from tests.fuzz.driver import Case, Outcome
from tests.paths import ROOT
from tests.wheels.windows import WINE, settings

SETS = ("avx512bf16", "avx512", "avx2")
SHAPES = ((384, 67), (1000, 19))  # inputs, outputs: parts of a chunk and of a block, odd numbers of outputs
ROWS = (1, 3, 16, 64)


def cases() -> Iterator[Case]:
    """Products of all widths and blocks, attention, random shapes, and sizes that do not fit."""
    draw = np.random.default_rng(5)
    for inputs, outputs in SHAPES:
        for bits in (4, 3, 2):
            for block in (16, 32, 64, 128):
                for rows in ROWS:
                    yield product(draw, inputs=inputs, outputs=outputs, bits=bits, block=block, rows=rows)
    yield from (attention(draw, heads=2, width=width) for width in (2, 14, 64, 72, 80, 128))
    yield from (right_case(draw) for _ in range(60))
    yield from (wrong_case(draw) for _ in range(60))


def plain(outcome: Outcome) -> tuple[object, object]:
    """The error, and the bytes."""
    return outcome.error, None if outcome.output is None else outcome.output.tobytes()


def main() -> int:
    """Print how many results are equal, by instruction set; 1 where any differs."""
    here, there = (ROOT / "build" / "windows" / name for name in ("driver-here", "driver-there"))
    for folder in (here, there):
        folder.mkdir(parents=True, exist_ok=True)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", PLATFORMS["win_amd64"]]
    program = driver.build(there, "-O3", machine="x86_64", compiler=compiler, flags=())
    given = list(cases())
    expected = [plain(outcome) for outcome in driver.run_cases(driver.build(here, "-O3", flags=()), given).outcomes]
    os.environ.update(settings(there.parent))
    different = 0
    for name in SETS:
        ran = driver.run_cases(program, given, name, emulator=[WINE])
        equal = sum(plain(outcome) == want for outcome, want in zip(ran.outcomes, expected, strict=False))
        print(f"{name:<12} {equal} of {len(given)} equal {ran.crash.text if ran.crash else ''}")
        different += len(given) - equal
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
