"""The memory that a process took, as each system tells it."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lensmith.runtimes.process import memory

from tests.helpers.windows import as_on_windows

MISSING = Path("no such file")


def test_the_peak_is_in_bytes() -> None:
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("this system has no /proc")
    now = int(statm.read_text().split()[1]) * 4096
    assert 10_000_000 < now <= memory.peak_memory_bytes() + 5_000_000 < 1 << 40


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_without_proc(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(memory, "STATUS", MISSING)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=1234))
    assert memory.peak_memory_bytes() == 1234 * unit


@pytest.mark.parametrize(("answer", "expected"), [(1, 5678), (0, 0)])
def test_on_windows(answer: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PeakWorkingSetSize stands behind two numbers of 4 bytes, and the whole has 8 of the size of a pointer."""

    def told(process: int, counters: Any, size: int) -> int:
        assert (process, size) == (-1, 8 + 8 * ctypes.sizeof(ctypes.c_void_p))
        place = ctypes.addressof(counters._obj)
        assert ctypes.c_uint32.from_address(place).value == size
        ctypes.c_size_t.from_address(place + 8).value = 5678
        return answer

    def current() -> int:
        return -1

    kernel = SimpleNamespace(K32GetProcessMemoryInfo=told, GetCurrentProcess=current)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: kernel, raising=False)
    windows = as_on_windows("runtimes.process.memory", monkeypatch)
    monkeypatch.setattr(windows, "STATUS", MISSING)
    assert windows.peak_memory_bytes() == expected
