"""lensmith's kernels give the same bits on Arm as on this machine, and run nothing that a processor lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.arm.emulator import PROCESSORS, emulated, run
from tests.arm.patience import take_time
from tests.arm.root import ArmRoot
from tests.fuzz import driver
from tests.fuzz.cases import attention, product, right_case, rotary, signed_product
from tests.fuzz.driver import Case
from tests.fuzz.prologue_cases import TAKEN, with_prologue
from tests.helpers.native import need

# The sets of each processor, the quickest first
HAS = {"max": ("i8mm", "dotprod", "neon"), "cortex-a76": ("dotprod", "neon"), "cortex-a72": ("neon",)}
QUICK = [("max", "i8mm"), ("max", "dotprod"), ("cortex-a72", "neon")]
ROWS = (1, 2, 3, 7, 16, 64, 600)
# inputs and outputs: several segments of 32 chunks, odd numbers of outputs, parts of a chunk and of a block
SHAPES = ((384, 67), (4224, 66), (200, 33), (1000, 1))
CHOSEN = "from lensmith.runtimes.engines.native import wanted_instructions; print(wanted_instructions())"


@dataclass(frozen=True)
class Programs:
    """The kernels with the driver of the fuzzer, for this machine and for Arm."""

    here: Path
    arm: Path

    def results_here(self, cases: Sequence[Case]) -> list[bytes]:
        return results(driver.run_cases(self.here, cases), len(cases))

    def results_on(self, root: ArmRoot, processor: str, cases: Sequence[Case], instructions: str) -> list[bytes]:
        ran = driver.run_cases(self.arm, cases, instructions, emulator=emulated(root, processor))
        return results(ran, len(cases))


def results(ran: driver.Run, count: int) -> list[bytes]:
    assert ran.crash is None, f"{ran.crash.returncode}: {ran.crash.text}"
    assert not [outcome.error for outcome in ran.outcomes if outcome.error]
    made = [outcome.output.tobytes() for outcome in ran.outcomes if outcome.output is not None]
    assert len(made) == count
    return made


def every_case() -> list[Case]:
    """Each width and block with all numbers of rows, attention of several widths, heads to turn, and random shapes."""
    draw = np.random.default_rng(16)
    products = [
        product(draw, inputs=inputs, outputs=outputs, bits=bits, block=block, rows=rows)
        for shape, (inputs, outputs) in enumerate(SHAPES)
        for bits in (4, 3, 2)
        for block in (16, 32, 64, 128)
        for rows in ROWS[shape % 2 :: 2]
    ]
    products += [
        product(draw, inputs=1000, outputs=67, bits=8, block=block, rows=rows)
        for block in (16, 128, 256)
        for rows in (1, 7, 64)
    ]
    products += [
        with_prologue(draw, name, product(draw, inputs=1000, outputs=67, bits=4, rows=rows))
        for name in TAKEN
        for rows in (1, 9)
    ]
    products += [signed_product(inputs, 67, rows) for inputs in (256, 1000) for rows in (1, 7, 64)]
    widths = [attention(draw, heads=2, width=width) for width in (2, 14, 64, 72, 80, 128, 256)]
    widths += [rotary(draw, width=width) for width in (20, 64, 80, 128, 256)]
    return [*products, *widths, *(right_case(draw) for _ in range(60))]


@pytest.fixture(scope="module")
def programs(arm: ArmRoot, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    need("MatMulInt4")
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("arm")
    return Programs(
        here=driver.build(here, "-O1", flags=()),
        arm=driver.build(there, "-O3", machine="aarch64", compiler=arm.compiler, flags=()),
    )


@pytest.fixture(scope="module")
def expected(programs: Programs) -> list[bytes]:
    return programs.results_here(every_case())


@pytest.mark.parametrize(("processor", "instructions"), [(name, each) for name, sets in HAS.items() for each in sets])
def test_bits_are_those_of_this_machine(
    processor: str, instructions: str, arm: ArmRoot, programs: Programs, expected: list[bytes]
) -> None:
    take_time((processor, instructions) in QUICK)
    cases = every_case()
    found = programs.results_on(arm, processor, cases, instructions)
    different = [case for case, here, there in zip(cases, expected, found, strict=True) if here != there]
    assert not different, [
        (case.operator, case.attributes, case.inputs[0] and case.inputs[0].dims) for case in different
    ]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_quickest_is_chosen(processor: str, arm: ArmRoot) -> None:
    assert run(arm, processor, ["-c", CHOSEN]).stdout.strip() == HAS[processor][0]


@pytest.mark.parametrize(("processor", "instructions"), [("cortex-a72", "dotprod"), ("cortex-a76", "i8mm")])
def test_what_a_processor_lacks_is_refused(processor: str, instructions: str, arm: ArmRoot) -> None:
    ran = run(arm, processor, ["-c", CHOSEN], check=False, LENSMITH_NATIVE=instructions)
    assert f"LENSMITH_NATIVE is '{instructions}', which this processor lacks" in ran.stderr
