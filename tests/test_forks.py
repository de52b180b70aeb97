"""Who waits for whom when a process is forked while threads compute, and what a child has of its parent's engines."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from lensmith.runtimes import forks
from lensmith.runtimes.forks import PerProcess, _Quiet
from lensmith.targets.errors import InputError

SOON, NEVER = 20.0, 0.15  # seconds: by then it has happened, or it waits


class Running:
    """A thread with what it does, and whether it is done."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action, self.done = action, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self.action()
        self.done.set()


def computes(quiet: _Quiet, until: threading.Event, begun: threading.Event) -> Callable[[], None]:
    def action() -> None:
        with quiet.computing():
            begun.set()
            assert until.wait(SOON)

    return action


def forks_once(quiet: _Quiet) -> None:
    quiet.begin_fork()
    quiet.end_fork()


def test_a_fork_waits_until_no_other_thread_computes() -> None:
    quiet, until, begun = _Quiet(), threading.Event(), threading.Event()
    Running(computes(quiet, until, begun))
    assert begun.wait(SOON)
    fork = Running(lambda: forks_once(quiet))
    assert not fork.done.wait(NEVER)
    until.set()
    assert fork.done.wait(SOON)


def test_a_thread_that_computes_may_fork_itself() -> None:
    quiet = _Quiet()

    def action() -> None:
        with quiet.computing():
            forks_once(quiet)

    assert Running(action).done.wait(SOON)


def test_computing_waits_until_the_fork_is_over() -> None:
    quiet, begun = _Quiet(), threading.Event()
    over, until = threading.Event(), threading.Event()

    def action() -> None:
        quiet.begin_fork()
        quiet._changed.release()  # as the wait of `computing` does, so that only `_forking` holds the other back
        assert over.wait(SOON)
        quiet._changed.acquire()
        quiet.end_fork()

    fork = Running(action)
    while not quiet._forking:
        assert not fork.done.wait(0.001)
    until.set()
    other = Running(computes(quiet, until, begun))
    assert not begun.wait(NEVER)
    over.set()
    assert begun.wait(SOON)
    assert other.done.wait(SOON)
    assert fork.done.wait(SOON)


def test_what_was_computed_before_holds_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it failed."""
    monkeypatch.setattr(forks, "LONGEST_WAIT", 2 * SOON)
    quiet = _Quiet()

    def action() -> None:
        with quiet.computing():
            pass
        with pytest.raises(ZeroDivisionError), quiet.computing():
            raise ZeroDivisionError

    assert Running(action).done.wait(SOON)
    assert Running(lambda: forks_once(quiet)).done.wait(SOON)


def test_a_child_makes_its_own_when_it_first_asks() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], list[str]]:
        return lambda: made.append(name) or [name]  # type: ignore[func-returns-value]

    here, on_gpu = PerProcess(make("parent"), make("child")), PerProcess(make("gpu"), None)
    assert here.get() is here.get()
    assert made == ["parent", "gpu"]
    parents = here.get()
    here._lock.acquire()  # held by a thread of the parent that the child does not have
    here.leave_behind()
    on_gpu.leave_behind()
    assert made == ["parent", "gpu"]
    assert here.get() is here.get() is not parents
    assert made == ["parent", "gpu", "child"]
    with pytest.raises(InputError, match="a model on a GPU cannot be used in a process that was forked"):
        on_gpu.get()
