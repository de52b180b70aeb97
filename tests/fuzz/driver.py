"""Kernels under AddressSanitizer and UndefinedBehaviorSanitizer: compiles driver.c with them and hands it cases."""

from __future__ import annotations

import os
import platform
import shlex
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hatch_build

Array = NDArray[Any]
DRIVER = Path(__file__).with_name("driver.c")
FLAGS = ("-std=gnu11", "-g", *hatch_build.SAME_BITS, f"-I{hatch_build.FOLDER}")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# AVX-VNNI's products are tried in AVX-512's encoding: more processors have that.
OTHER_FLAGS = {"avxvnni.c": [*hatch_build.AVX2, "-mavx512vl", "-mavx512vnni"]}
ATTRIBUTES, FLOATS, NAME = 6, 2, 32  # of a case
LACKING = 3  # the exit code where the processor lacks an instruction set


@dataclass(frozen=True)
class Tensor:
    """Bytes with a shape that ONNX Runtime could give them: none, or as many as the shape says."""

    dims: tuple[int, ...]
    values: Array

    @staticmethod
    def of(values: Array) -> Tensor:
        return Tensor(values.shape, values)


@dataclass(frozen=True)
class Case:
    """One call of an operator: None is an optional input that is missing."""

    operator: str
    attributes: tuple[int, ...]
    inputs: tuple[Tensor | None, ...]
    floats: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a case: outputs, or what the error says."""

    output: Array | None = None  # all of them, flat: numpy has no empty arrays of huge dimensions
    dims: tuple[tuple[int, ...], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Crash:
    """The case at which the driver died, and what it said."""

    case: Case
    returncode: int
    text: str


@dataclass
class Run:
    outcomes: list[Outcome] = field(default_factory=list)
    crash: Crash | None = None


def cannot_sanitize(folder: Path) -> str:
    """Why this compiler cannot build with both sanitizers, or nothing."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [*_compiler(), *SANITIZED, str(source), "-o", str(folder / "empty")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        return f"the C compiler has no AddressSanitizer (install libasan and libubsan): {ran.stderr.strip()[-200:]}"
    return ""


def build(
    folder: Path, optimize: str = "-O0", *, machine: str = platform.machine(), compiler: Sequence[str] = (),
    flags: Sequence[str] = SANITIZED,
) -> Path:  # fmt: skip
    """Compile the kernels and the driver, with sanitizers unless `flags` are others; the program.

    `compiler` is one for another `machine`, such as aarch64. Raises CalledProcessError where that fails.
    """
    command = [*(compiler or _compiler()), *FLAGS, *flags]
    files = hatch_build.sources(machine) | {name: own for name, own in OTHER_FLAGS.items() if machine == "x86_64"}
    sources = {hatch_build.FOLDER / name: own for name, own in files.items()} | {DRIVER: []}
    objects = {source: folder / f"{source.stem}.o" for source in sources}

    def compile_one(source: Path) -> None:
        _run([*command, "-c", optimize, *sources[source], str(source), "-o", str(objects[source])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    program = folder / "driver"
    _run([*command, *map(str, objects.values()), "-lm", "-o", str(program)])
    return program


def run_cases(
    program: Path, cases: Sequence[Case], *arguments: str, emulator: Sequence[str] = (), timeout: float = 300
) -> Run:
    """Outcomes of all cases, in one process; those behind a crash are missing. The argument is an instruction set."""
    given = b"".join(map(encode, cases))
    command = [*emulator, str(program), *arguments]
    ran = subprocess.run(command, input=given, capture_output=True, timeout=timeout, check=False)
    outcomes = list(_decode(ran.stdout))
    if ran.returncode == 0 and len(outcomes) == len(cases):
        return Run(outcomes)
    return Run(outcomes, Crash(cases[len(outcomes)], ran.returncode, ran.stderr.decode(errors="replace")[-3000:]))


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def encode(case: Case) -> bytes:
    attributes = (*case.attributes, *(0,) * (ATTRIBUTES - len(case.attributes)))
    floats = (*case.floats, *(0.0,) * (FLOATS - len(case.floats)))
    parts = [case.operator.encode().ljust(NAME, b"\0"), _numbers(*attributes), struct.pack(f"<{FLOATS}f", *floats)]
    parts.append(_numbers(len(case.inputs)))
    for tensor in case.inputs:
        if tensor is None:
            parts.append(_numbers(0))
        else:
            data = tensor.values.tobytes()
            parts += [_numbers(1, len(tensor.dims), *tensor.dims, len(data)), data]
    return b"".join(parts)


def _decode(data: bytes) -> Iterator[Outcome]:
    at = 0

    def number() -> int:
        nonlocal at
        at += 8
        return int.from_bytes(data[at - 8 : at], "little", signed=True)

    while at < len(data):
        if number():
            size = number()
            at += size
            yield Outcome(error=data[at - size : at].decode())
        else:
            dims, parts = [], []
            for _ in range(number()):
                dims.append(tuple(number() for _ in range(number())))
                size = number()
                at += size
                parts.append(np.frombuffer(data[at - size : at], np.float32))
            yield Outcome(np.concatenate(parts), tuple(dims))


def describe(case: Case) -> Mapping[str, Any]:
    """A case without its values, to be read."""
    shapes = [None if tensor is None else list(tensor.dims) for tensor in case.inputs]
    return {"operator": case.operator, "attributes": (*case.attributes, *case.floats), "shapes": shapes}
