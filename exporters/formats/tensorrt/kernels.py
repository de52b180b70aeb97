"""What an engine's own text says of its kernels: without a GPU there is no other way to see them.

The format is not documented, and known for the versions of KNOWN; of others nothing is said.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

KNOWN = ("tensorrt_rtx", "1.7.")  # the flavour, and how its versions begin
KERNEL = re.compile(rb"^ *(?:function|runtime_fusion)=\{ name=[^\n]*", re.M)
CONSTANT = re.compile(rb'(?:_dconst|_const-lit-in)"$')
INPUTS = re.compile(rb"input_args=\{([^}]*)\}")
LAYER = re.compile(rb"\[ONNX Layer: ([^\]]*)\]")
CHIPS = re.compile(rb"^ *accelerators=\{ *(sm[^}]*)\}", re.M)
RECORDABLE = re.compile(rb"^ *stream_capturable=(\d)", re.M)
WIDENS = "DequantizeLinear"


def read_kernels(path: Path, flavour: str, version: str) -> dict[str, Any] | None:
    """What the manifest says of an engine's kernels; None for versions whose text is not known.

    "capabilities" are those it was compiled for, "kernels" how many it has in all profiles, "fused" how many of these
    widen packed weights within their work, "written_out" the layers whose weights a kernel of its own turns into
    floats in memory at each step: packed, they save space and no time. "recordable" is whether steps can be recorded as
    CUDA graphs, which those with a scan cannot.
    """
    if flavour != KNOWN[0] or not version.startswith(KNOWN[1]):
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        chips = {name.decode() for found in CHIPS.findall(text) for name in found.split()}
        recordable = all(flag == b"1" for flag in RECORDABLE.findall(text))
        lines = [line for line in KERNEL.findall(text) if INPUTS.search(line)]
    pairs = [(line, [name.decode(errors="replace") for name in LAYER.findall(line)]) for line in lines]
    widening = [(line, names) for line, names in pairs if any(WIDENS in name for name in names)]
    alone = [names for line, names in widening if _of_constants(line) or all(WIDENS in name for name in names)]
    return {
        "capabilities": sorted(map(capability, chips), key=lambda name: tuple(map(int, name.split(".")))),
        "kernels": len(lines),
        "fused": len(widening) - len(alone),
        "recordable": recordable,
        "written_out": sorted({name for names in alone for name in names if WIDENS in name}),
    }


def capability(chip: str) -> str:
    """ "8.6" of "sm86"."""
    return f"{chip[2:-1]}.{chip[-1]}"


def _of_constants(line: bytes) -> bool:
    """Whether a kernel reads nothing but constants, so that it computes the same at each step."""
    found = INPUTS.search(line)
    return found is not None and all(CONSTANT.search(name) for name in found[1].split())
