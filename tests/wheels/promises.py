"""What the tag of each wheel promises of the library in it, and how a library breaks that."""

from __future__ import annotations

from dataclasses import dataclass

# What ONNX Runtime and the runtime call.
EXPORTS = {"RegisterCustomOps", "lensmith_operator", "lensmith_instruction_set", "lensmith_choose"}
Version = tuple[int, int]


@dataclass(frozen=True)
class Library:
    """What a shared library says of itself: who can load it, what it brings and what it needs."""

    machine: str
    least: Version  # of glibc, of macOS or of Windows
    exports: frozenset[str]
    needs: frozenset[str]  # libraries
    faults: tuple[str, ...] = ()  # what its system would not take


@dataclass(frozen=True)
class Promise:
    """What the tag of a wheel promises."""

    ending: str
    machine: str
    system: Version  # the oldest that it runs on
    beginnings: tuple[str, ...]  # of the names of libraries that every such system has


WINDOWS = ("kernel32.dll", "api-ms-win-crt-", "ucrtbase.dll")
LINUX = ("libc.so.6", "libm.so.6", "ld-linux-")
PROMISES = {
    "manylinux_2_28_x86_64": Promise("so", "X86_64", (2, 28), LINUX),
    "manylinux_2_28_aarch64": Promise("so", "AARCH64", (2, 28), LINUX),
    "macosx_14_0_arm64": Promise("dylib", "ARM64", (14, 0), ("/usr/lib/libsystem.b.dylib",)),
    "win_amd64": Promise("dll", "AMD64", (10, 0), WINDOWS),
    "win_arm64": Promise("dll", "ARM64", (10, 0), WINDOWS),
}


def broken(library: Library, promise: Promise) -> list[str]:
    """What of a promise a library does not keep, in words."""
    found = list(library.faults)
    if library.machine != promise.machine:
        found.append(f"it is for {library.machine}, expected {promise.machine}")
    if library.least > promise.system:
        found.append(f"it wants version {library.least} of its system, expected {promise.system} at most")
    if missing := EXPORTS - library.exports:
        found.append(f"it lacks {', '.join(sorted(missing))}")
    strange = [name for name in library.needs if not name.lower().startswith(promise.beginnings)]
    if strange:
        found.append(f"it needs {', '.join(sorted(strange))}, which not every such system has")
    return found
