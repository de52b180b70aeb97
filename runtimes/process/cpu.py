"""What the CPU of this device can do, as far as the system tells."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)
CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets that Linux lists ("avx512_vnni", "asimddp"); empty where the system does not tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(word for line in lines for word in line.split())


def told_if_lacking(any_of: Iterable[str], found: frozenset[str] | None = None) -> bool:
    """Log (INFO) that this CPU is known to have none of the features that a bundle's target expects: it is slower."""
    found = cpu_features() if found is None else found
    wanted = list(any_of)
    lacking = bool(found) and bool(wanted) and found.isdisjoint(wanted)
    if lacking:
        log.info("this CPU has none of %s: 8-bit products are as exact, but slower", ", ".join(wanted))
    return lacking
