"""Locks between processes, with Windows' calls on top of those of this system, too."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from lensmith.runtimes.storage import locks

from tests.helpers.windows import as_on_windows

fcntl = pytest.importorskip("fcntl", reason="stands for Windows' locks here")


def locking(descriptor: int, mode: int, size: int) -> None:
    """As msvcrt has it: for one more than the file holds, too, and refused with another number."""
    assert (mode, size) == (2, 1)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


@pytest.fixture(params=["posix", "windows"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if request.param == "posix":
        return locks
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    return as_on_windows("runtimes.storage.locks", monkeypatch)


@pytest.fixture(params=["folder", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / "place"
    made.mkdir() if request.param == "folder" else made.touch()
    return made


def test_one_at_a_time(module: ModuleType, place: Path) -> None:
    for _ in range(2):
        with module.held(place, wait=False), pytest.raises(BlockingIOError), module.held(place, wait=False):
            pass
        with pytest.raises(KeyError), module.held(place, wait=False):  # an error lets go, too
            raise KeyError
    assert list(place.parent.iterdir()) == [place]


def test_a_folder_can_be_moved_afterwards_and_holds_nothing_more(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with module.held(tmp_path / "a", wait=False):
        assert not list((tmp_path / "a").iterdir())
    (tmp_path / "a").rename(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_waiting(module: ModuleType, place: Path) -> None:
    order = list[str]()

    def second() -> None:
        with module.held(place, wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with module.held(place, wait=True):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
