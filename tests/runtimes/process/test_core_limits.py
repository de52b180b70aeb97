"""How many cores there are for a process, on machines that are folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lensmith.runtimes.process.core_limits import available_cores, usable_cores

GROUP = "sys/fs/cgroup"


def machine(root: Path, **files: str) -> Path:
    """Eight logical cores, of which two by two are one physical, and other files; "__" in names stands for "/"."""
    named = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)}
    for name, text in {**named, **{name.replace("__", "/"): text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_physical_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == 8
    assert usable_cores(machine(tmp_path)) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5})
    assert (available_cores(), usable_cores(tmp_path)) == (3, 2)


def test_each_counts_where_the_system_does_not_say(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("150000 100000", 2), ("200000 100000", 2), ("20000 100000", 1), ("900000 100000", 4),
     ("0 100000", 1), ("100000 0", 4), ("nonsense", 4), ("", 4)],
)  # fmt: skip
def test_the_quota_of_a_container(tmp_path: Path, quota: str, cores: int) -> None:
    files = {"proc__self__cgroup": "0::/\n", f"{GROUP}/cpu.max": quota}
    assert usable_cores(machine(tmp_path, **files)) == cores


def test_the_strictest_group_counts(tmp_path: Path) -> None:
    files = {"proc__self__cgroup": "0::/user/mine\n", f"{GROUP}/cpu.max": "max 100000",
             f"{GROUP}/user/cpu.max": "100000 100000", f"{GROUP}/user/mine/cpu.max": "300000 100000"}  # fmt: skip
    assert usable_cores(machine(tmp_path, **files)) == 1


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("250000", 3)])
def test_the_first_version_of_groups(tmp_path: Path, quota: str, cores: int) -> None:
    files = {"proc__self__cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n", f"{GROUP}/cpu/box/cpu.cfs_quota_us": quota,
             f"{GROUP}/cpu/box/cpu.cfs_period_us": "100000", f"{GROUP}/cpu.max": "1 1"}  # fmt: skip
    assert usable_cores(machine(tmp_path, **files)) == cores


def test_systems_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert (available_cores(), usable_cores(tmp_path)) == (6, 6)
