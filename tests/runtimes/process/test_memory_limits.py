"""Limits of containers, as Docker, Kubernetes and systemd write them under both versions of control groups."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from lensmith.runtimes.process.memory_limits import memory_bytes

GB = 1 << 30
MEMINFO = f"MemTotal: {16 * GB // 1024} kB\nMemFree: 100 kB\nMemAvailable: {12 * GB // 1024} kB\n"
UNLIMITED = "9223372036854771712\n"  # of the first version, on any machine

V2 = "29 23 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n"
V1 = (
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 /docker/abc /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n"
    "33 30 0:29 / /sys/fs/cgroup/systemd ro - cgroup cgroup rw,name=systemd\n"
)


def _machine(root: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    own = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, text in {**own, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_container_of_the_second_version(tmp_path: Path) -> None:
    files = {"memory.max": f"{4 * GB}\n", "memory.current": f"{3 * GB}\n",
             "memory.stat": f"anon {GB}\nfile {2 * GB}\ninactive_file {GB}\nactive_file {GB}\n"}  # fmt: skip
    root = _machine(tmp_path, "0::/\n", V2, files)
    assert memory_bytes(root) == (4 * GB, 2 * GB)  # a page that nobody used lately makes room


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    files = {
        "system.slice/memory.max": f"{2 * GB}\n",
        "system.slice/memory.current": f"{GB // 2}\n",
        "system.slice/mine.service/memory.max": "max\n",
    }
    root = _machine(tmp_path, "0::/system.slice/mine.service\n", V2, files)
    assert memory_bytes(root) == (2 * GB, 3 * GB // 2)
    within = {"system.slice/mine.service/memory.max": f"{GB}\n", "system.slice/memory.current": f"{7 * GB // 4}\n"}
    _machine(tmp_path, "0::/system.slice/mine.service\n", V2, within)
    assert memory_bytes(root) == (GB, GB // 4)  # of a group that others have nearly filled


def test_a_container_of_the_first_version(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": f"{GB}\n",
        "memory/memory.usage_in_bytes": f"{GB // 2}\n",
        "memory/memory.stat": f"cache 1\ninactive_file 7\ntotal_inactive_file {GB // 4}\n",
    }
    groups = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
    root = _machine(tmp_path, groups, V1, files)
    assert memory_bytes(root) == (GB, 3 * GB // 4)


@pytest.mark.parametrize("files", [
    {},
    {"memory.max": "max\n"},
    {"memory.max": f"{64 * GB}\n", "memory.current": "1\n"},
    {"memory.max": UNLIMITED},
])  # fmt: skip
def test_without_limits_it_is_the_machine(tmp_path: Path, files: dict[str, str]) -> None:
    root = _machine(tmp_path, "0::/\n", V2, files)
    assert memory_bytes(root) == (16 * GB, 12 * GB)


def test_no_limit_gives_what_the_machine_lacks(tmp_path: Path) -> None:
    full = {"memory.max": f"{15 * GB}\n", "memory.current": f"{GB}\n"}
    assert memory_bytes(_machine(tmp_path, "0::/\n", V2, full)) == (15 * GB, 12 * GB)
    over = {"memory.max": f"{GB}\n", "memory.current": f"{2 * GB}\n"}
    assert memory_bytes(_machine(tmp_path, "0::/\n", V2, over)) == (GB, 0)


def test_a_system_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory_bytes(tmp_path) == (4_096_000, 3_072_000)


def test_this_machine() -> None:
    total, free = memory_bytes()
    assert 0 < free < total
