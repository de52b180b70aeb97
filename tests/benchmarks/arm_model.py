"""Cycles that a model of an Arm processor takes for lensmith's products, and for other programs' beside them.

    python -m tests.benchmarks.arm_model [--processor neoverse-v1] [--set i8mm] [--compiler aarch64-linux-gnu-gcc]
    python -m tests.benchmarks.arm_model --program PEER --symbol FUNCTION --values N [--rows M]

The program is run by qemu, each instruction between the entry of a function and its return is written down, and
llvm-mca says how many cycles these take in a row: turning of scales, addresses, tails and all. It knows no misses of
the cache and no wrong guesses of branches. The second form does the same with another static program for aarch64 that
calls FUNCTION; N are the weights that its first call multiplies, M the rows of inputs. Needs llvm-mca, llvm-objdump and
llvm-nm, of version 19 (their names may end so).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from tests.arm.emulator import emulated
from tests.arm.root import ArmRoot, arm_root
from tests.fuzz import driver
from tests.fuzz.cases import product as right_product

# What begins a product of bytes each cycle, and how many of these an instruction of each set takes.
PIPELINES = {"neoverse-n1": 2, "cortex-a76": 2, "neoverse-n2": 2, "neoverse-v1": 4}
PRODUCTS = {"neon": 8, "dotprod": 16, "i8mm": 32}
QUICKEST = {"neoverse-v1": "i8mm", "neoverse-n2": "i8mm"}  # elsewhere dotprod
FEATURES = "+dotprod,+i8mm,+bf16,+fullfp16"
# Rows, inputs, outputs: parts of a task, in which nothing of it is left out. Rounding of inputs is another task.
ONE, FEW, MANY = (1, 2048, 16), (4, 2048, 16), (64, 256, 64)
JUMP = re.compile(r"^(b|bl|b\.\w+|cbn?z|tbn?z)\s")
PAGE = re.compile(r"^adrp?\s")


@dataclass(frozen=True)
class Program:
    """A program for aarch64 and how it is run."""

    path: Path
    emulator: Sequence[str]

    def addresses(self, symbol: str) -> set[int]:
        """Where functions of this name begin; static ones of several files may share it."""
        lines = _output([_tool("llvm-nm"), str(self.path)]).splitlines()
        return {int(line.split()[0], 16) for line in lines if line.split()[2:] == [symbol]}

    def instructions(self) -> dict[int, str]:
        """Each by its address, as an assembler reads them."""
        command = [_tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--no-leading-headers", "--mattr=+all"]
        found = re.findall(r"^ *([0-9a-f]+):\s+([^<\n/]+)", _output([*command, str(self.path)]), re.MULTILINE)
        return {int(address, 16): _placed(text.strip()) for address, text in found}

    def run(self, arguments: Sequence[str], given: bytes) -> Iterator[int]:
        """Addresses of the instructions that it executes."""
        code = sorted(self.instructions())
        with tempfile.NamedTemporaryFile() as log:
            traced = ["-singlestep", "-d", "exec,nochain", "-dfilter", f"{code[0]:#x}..{code[-1]:#x}", "-D", log.name]
            command = [self.emulator[0], *traced, *self.emulator[1:], str(self.path), *arguments]
            subprocess.run(command, input=given, check=True, stdout=subprocess.DEVNULL)
            for line in Path(log.name).read_text(errors="replace").splitlines():
                if found := re.search(r"\[[0-9a-f]+/([0-9a-f]+)/", line):
                    yield int(found[1], 16)


def main() -> None:
    """Print a line for each kind of product, or for the other program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor", choices=PIPELINES, default="neoverse-n1", help="as llvm-mca names it")
    parser.add_argument("--set", choices=PRODUCTS, help="an instruction set; or else the quickest of the processor")
    parser.add_argument("--compiler", help="or else the one that the wheel is made with")
    parser.add_argument("--program", type=Path)
    parser.add_argument("--symbol")
    parser.add_argument("--values", type=int, help="weights that are multiplied")
    parser.add_argument("--rows", type=int, default=1)
    given = parser.parse_args()
    root = arm_root()
    chosen = given.set or QUICKEST.get(given.processor, "dotprod")
    peak = PRODUCTS[chosen] * PIPELINES[given.processor]
    if given.program:
        other = Program(given.program.resolve(), emulated(root, "max"))
        cycles, count = model(other, [], b"", given.symbol, given.processor)
        report(given.symbol, cycles, count, given.values, given.rows, peak)
        return
    with tempfile.TemporaryDirectory() as folder:
        ours = build(root, Path(folder), given.compiler)
        for (rows, inputs, outputs), block in product((ONE, FEW, MANY), (32, 128)):
            case = right_product(
                np.random.default_rng(1), rows=rows, inputs=inputs, outputs=outputs, block=block, bits=4
            )
            plain = driver.encode(replace(case, inputs=(*case.inputs[:3], None, None)))
            cycles, count = model(ours, [chosen], plain, "few_rows" if rows <= 8 else "panel", given.processor)
            report(f"{chosen}, blocks of {block}", cycles, count, inputs * outputs, rows, peak)


def build(root: ArmRoot, folder: Path, compiler: str | None) -> Program:
    command = compiler.split() if compiler else root.compiler
    path = driver.build(folder, "-O3", machine="aarch64", compiler=command, flags=("-fno-pie", "-no-pie"))
    return Program(path, emulated(root, "max"))


def model(program: Program, arguments: Sequence[str], given: bytes, symbol: str, processor: str) -> tuple[int, int]:
    """Cycles of the first call of a function, and its instructions."""
    code, starts = program.instructions(), program.addresses(symbol)
    if not starts:
        raise SystemExit(f"{program.path} has no function {symbol}")
    taken: list[str] = []
    back = before = 0
    for address in program.run(arguments, given):
        if not taken and address in starts:
            back = before + 4
        if back and address == back:
            break
        if back:
            taken.append(code[address])
        before = address
    if not taken:
        raise SystemExit(f"{program.path} did not call {symbol}")
    options = ["-mtriple=aarch64", f"-mcpu={processor}", f"-mattr={FEATURES}", "-iterations=1"]
    views = ["--skip-unsupported-instructions=any", "-instruction-info=0", "-resource-pressure=0"]
    said = _output([_tool("llvm-mca"), *options, *views], "\n".join(taken))
    found = re.search(r"Total Cycles: *(\d+)", said)
    assert found, said[:2000]
    return int(found[1]), len(taken)


def report(name: str, cycles: int, count: int, values: int, rows: int, peak: int) -> None:
    pieces = values / 32  # 16 bytes
    share = values * rows / cycles / peak
    print(f"{name}, {rows} rows: {cycles / pieces:.2f} cycles for each 16 bytes of weights, {count / pieces:.1f} "
          f"instructions; {share:.0%} of the peak")  # fmt: skip


def _placed(text: str) -> str:
    """Addresses of jumps and pages mean nothing where instructions are in a row."""
    if JUMP.match(text):
        return re.sub(r"\S+$", "#4", text)
    return re.sub(r"\S+$", "#0", text) if PAGE.match(text) else text


def _tool(name: str) -> str:
    found = shutil.which(f"{name}-19") or shutil.which(name)
    if not found:
        raise SystemExit(f"{name} is missing (Debian's package llvm-19)")
    return found


def _output(command: Sequence[str], given: str | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
