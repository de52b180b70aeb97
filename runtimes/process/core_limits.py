"""How many cores are there for this process: those it may run on, and what the quota of a container leaves of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
SIBLINGS = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
GROUPS = "sys/fs/cgroup"  # of Linux's control groups


def available_cores() -> int:
    """Logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(root: Path = ROOT) -> int:
    """Physical cores that this process may run on, or fewer where its quota of time is that of fewer.

    Where the system does not say which logical cores are one, each counts.
    """
    cores = min([_physical_cores(root), *(math.ceil(quota) for quota in _quotas(root))])
    return max(1, cores)


def _physical_cores(root: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        return available_cores()
    return len({_read(root / SIBLINGS.format(core)) or str(core) for core in os.sched_getaffinity(0)})


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that the groups of this process have, from the innermost outwards; none without a limit."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            group = Path(name.lstrip("/"))
            for each in (group, *group.parents):
                yield from _quota(root / GROUPS / each if not controllers else root / GROUPS / "cpu" / each)


def _quota(folder: Path) -> Iterator[float]:
    """That of one group, of the second version of control groups or of the first."""
    both = (_read(folder / "cpu.max") or "").split() or [
        _read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")
    ]
    if len(both) == 2 and both[0].isdigit() and both[1].isdigit() and int(both[1]):  # others are "max", and -1
        yield int(both[0]) / int(both[1])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
