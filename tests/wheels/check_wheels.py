"""Looks into wheels, on any machine: a table of what they need, and an error where a tag promises something else.

python -m tests.wheels.check_wheels build/wheels
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lief

from tests.wheels.promises import PROMISES, Library, Version, broken

KERNELS = "lensmith/runtimes/engines/kernels/kernels."


def read_elf(binary: Any) -> Library:
    """A library of Linux; its system is the newest glibc whose symbols it uses."""
    asked = [each.name for needed in binary.symbols_version_requirement for each in needed.get_auxiliary_symbols()]
    versions = [_version(name.removeprefix("GLIBC_")) for name in asked if name.startswith("GLIBC_")]
    stack = [segment for segment in binary.segments if segment.type == lief.ELF.Segment.TYPE.GNU_STACK]
    faults = ("its stack is executable",) if any(segment.has(lief.ELF.Segment.FLAGS.X) for segment in stack) else ()
    return Library(
        binary.header.machine_type.name, max(versions, default=(0, 0)),
        frozenset(symbol.name for symbol in binary.exported_symbols), frozenset(binary.libraries), faults,
    )  # fmt: skip


def read_pe(binary: Any) -> Library:
    """A library of Windows; its system is the version of the subsystem in its header."""
    header = binary.optional_header
    wanted = lief.PE.OptionalHeader.DLL_CHARACTERISTICS
    lacking = [each.name for each in (wanted.DYNAMIC_BASE, wanted.NX_COMPAT) if not header.has(each)]
    return Library(
        binary.header.machine.name, (header.major_subsystem_version, header.minor_subsystem_version),
        frozenset(each.name for each in binary.exported_functions), frozenset(binary.libraries),
        tuple(f"it lacks {name}" for name in lacking),
    )  # fmt: skip


def read_macho(binary: Any) -> Library:
    """A library of macOS, which loads none on arm64 without a signature, be it without an owner."""
    own = next((each.name for each in binary.commands if each.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB), "")
    names = (symbol.name.removeprefix("_") for symbol in binary.exported_symbols)
    faults = () if binary.has_code_signature else ("it is not signed",)
    major, minor, *_ = binary.build_version.minos
    needs = frozenset(each.name for each in binary.libraries if each.name != own)
    return Library(binary.header.cpu_type.name, (major, minor), frozenset(names), needs, faults)


READERS: Mapping[type, Callable[[Any], Library]] = {
    lief.ELF.Binary: read_elf,
    lief.PE.Binary: read_pe,
    lief.MachO.Binary: read_macho,
}


def read_library(data: bytes) -> Library:
    """What the bytes of a shared library say; ValueError for bytes that are none."""
    lief.logging.disable()  # it tells of what it does not know, too
    binary = lief.parse(list(data))
    if type(binary) not in READERS:
        raise ValueError("it is no shared library")
    return READERS[type(binary)](binary)


def check_wheel(path: Path) -> tuple[str, list[str]]:
    """A row of the table, and what is wrong with a wheel."""
    tag = path.stem.split("-")[-1]
    promise = PROMISES[tag]
    with zipfile.ZipFile(path) as wheel:
        said = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))).decode()
        inside = [name for name in wheel.namelist() if name.startswith(KERNELS)]
        data = wheel.read(inside[0]) if inside else b""
    if inside != [f"{KERNELS}{promise.ending}"] or f"Tag: py3-none-{tag}\n" not in said:
        return f"{tag:<24}", [f"its kernels are {inside} and its tags {said!r}"]
    library = read_library(data)
    least, needs = "{}.{}".format(*library.least), ", ".join(sorted(library.needs)) or "nothing"
    row = f"{tag:<24} {path.stat().st_size / 1e6:>5.2f} {len(data) / 1e3:>7.0f}  {library.machine:<8} {least:<7}"
    return f"{row} {len(library.exports):>7}  {needs}", broken(library, promise)


def _version(text: str) -> Version:
    major, minor, *_ = (*text.split("."), "0")
    return int(major), int(minor)


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 where something is wrong."""
    print(f"{'wheel':<24} {'MB':>5} {'lib kB':>7}  {'machine':<8} {'system':<7} {'exports':>7}  needs")
    faults = 0
    for path in sorted(Path(arguments[0]).glob("*.whl")):
        row, wrong = check_wheel(path)
        print(row)
        for each in wrong:
            print(f"{path.name}: {each}", file=sys.stderr)
        faults += len(wrong)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
