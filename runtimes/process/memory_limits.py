"""How much memory this process may take: the machine's, or what the limits of its container leave of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
CONTROLLER = "memory"  # of the first version of control groups


@dataclass(frozen=True)
class GroupFiles:
    """The files of one version of control groups."""

    memory: str
    used: str
    idle: str  # line of memory.stat: cached pages that make room, which `used` counts


VERSIONS = {
    "cgroup2": GroupFiles("memory.max", "memory.current", "inactive_file"),
    "cgroup": GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def memory_bytes(root: Path = ROOT) -> tuple[int, int]:
    """All memory that this process may take, and what is available of it now; 0 where unknown."""
    total, free = _machine_memory(root)
    for kind, folder in _groups(root):
        limit = _number(folder / VERSIONS[kind].memory)
        if limit is not None:
            total, free = min(total, limit), min(free, max(0, limit - _busy(kind, folder)))
    return total, free


def _machine_memory(root: Path) -> tuple[int, int]:
    try:
        lines = dict(line.split(":") for line in _text(root / "proc/meminfo").split("\n") if line)
        total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        return total, free
    except (KeyError, ValueError):
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total * 3 // 4
    return 0, 0


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """The control groups of this process with their version, the inmost first: the limits of all of them hold."""
    for line in _text(root / "proc/self/mountinfo").split("\n"):
        before, _, after = line.partition(" - ")
        kind, _, options = (after.split() + [""] * 3)[:3]
        if kind not in VERSIONS or (kind == "cgroup" and CONTROLLER not in options.split(",")):
            continue
        mounted, at = before.split()[3:5]  # the group that is seen at a place
        path, top = _own_path(root, kind), root / at.lstrip("/")
        inner = path[len(mounted.rstrip("/")) :] if f"{path}/".startswith(f"{mounted.rstrip('/')}/") else ""
        folder = top / inner.strip("/")
        yield from ((kind, each) for each in (folder, *folder.parents) if each == top or top in each.parents)


def _own_path(root: Path, kind: str) -> str:
    """Of the group of this process in a hierarchy, as "/docker/123"."""
    for line in _text(root / "proc/self/cgroup").split("\n"):
        number, controllers, path = (line.split(":", 2) + [""] * 3)[:3]
        if CONTROLLER in controllers.split(",") if kind == "cgroup" else number == "0":
            return path
    return "/"


def _busy(kind: str, folder: Path) -> int:
    """Bytes of a group that do not make room for others."""
    words = (line.split() for line in _text(folder / "memory.stat").split("\n"))
    stat = {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
    return (_number(folder / VERSIONS[kind].used) or 0) - stat.get(VERSIONS[kind].idle, 0)


def _number(path: Path) -> int | None:
    """What a file holds; None where there is none or it says "max"."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
