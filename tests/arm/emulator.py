"""Runs Python on emulated Arm processors, each with the /proc/cpuinfo and /sys that belong to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.arm.root import HOME, ArmRoot

CORES = 2
ARMV8 = "fp asimd aes pmull sha1 sha2 crc32"
ARMV82 = f"{ARMV8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
ARMV9 = f"{ARMV82} jscvt fcma asimdfhm flagm sve sve2 svei8mm svebf16 i8mm bf16 bti"
CPUINFO = """processor\t: {core}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x{implementer:02x}
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0x{part:03x}
CPU revision\t: 1

"""


@dataclass(frozen=True)
class Processor:
    """A processor that qemu knows, and what Linux would say of it."""

    qemu: str  # its name there, with options
    implementer: int
    part: int
    features: str  # that programs ask for; as Linux lists them


PROCESSORS = {
    "max": Processor("max,pauth-impdef=on", 0x00, 0x051, ARMV9),  # pointers are signed in half the time this way
    "cortex-a76": Processor("cortex-a76", 0x41, 0xD0B, ARMV82),
    "cortex-a72": Processor("cortex-a72", 0x41, 0xD08, f"{ARMV8} cpuid"),  # has no products of bytes (dotprod)
}


def run(root: ArmRoot, processor: str, arguments: Sequence[str | Path], *, check: bool = True,
        **variables: str) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Python with these arguments and environment variables; what it printed is raised where it fails and `check`."""
    command = [*emulated(root, processor), root.python, *arguments]
    ran = subprocess.run(command, env=_environment(root, variables), capture_output=True, text=True, check=False)
    if check and ran.returncode:
        raise AssertionError(f"on {processor}: exit code {ran.returncode}: {ran.stdout[-2000:]}\n{ran.stderr[-2000:]}")
    return ran


def emulated(root: ArmRoot, processor: str) -> list[str]:
    """What stands in front of a program for aarch64 and its arguments."""
    return [str(root.qemu), "-cpu", PROCESSORS[processor].qemu, "-L", str(_seen_by(root, processor))]


def _environment(root: ArmRoot, variables: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": f"{root.lensmith}:{root.packages}", "PYTHONNOUSERSITE": "1", **variables}


def _seen_by(root: ArmRoot, processor: str) -> Path:
    """The folder in which qemu looks first for each file: Debian's, and what the host's kernel says of another CPU.

    Libraries choose their instructions by /proc/cpuinfo too, and crash on what the host's file says.
    """
    folder = HOME / "processors" / processor
    for name in ("proc", "sys/devices/system/cpu"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for entry in root.system.iterdir():
        link = folder / entry.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(entry, folder))
    chosen = PROCESSORS[processor]
    fields = {"features": chosen.features, "implementer": chosen.implementer, "part": chosen.part}
    _write(folder / "proc" / "cpuinfo", "".join(CPUINFO.format(core=core, **fields) for core in range(CORES)))
    for name in ("possible", "present", "online"):
        _write(folder / "sys" / "devices" / "system" / "cpu" / name, f"0-{CORES - 1}\n")
    return folder


def _write(path: Path, text: str) -> None:
    """In one step, since another test may read it just now."""
    if not path.is_file() or path.read_text() != text:
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(text)
        part.replace(path)
