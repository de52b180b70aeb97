"""Who waits for whom when a process is forked while threads compute, and what a child has of its parent's engines."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable

import pytest
from lensmith.runtimes.process import forks
from lensmith.runtimes.process.forks import PerProcess, _Quiet
from lensmith.targets.errors import InputError

from tests.helpers.forking import fork

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


def until_forking(quiet: _Quiet, forked: Running) -> None:
    for _ in range(int(SOON * 1000)):
        assert not forked.done.wait(0.001)
        if quiet._forking:
            return
    pytest.fail("no fork began")


def test_a_fork_waits_until_no_other_thread_computes() -> None:
    quiet, until, begun = _Quiet(), threading.Event(), threading.Event()
    Running(computes(quiet, until, begun))
    assert begun.wait(SOON)
    forked = Running(lambda: forks_once(quiet))
    assert not forked.done.wait(NEVER)
    until.set()
    assert forked.done.wait(SOON)


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

    forked = Running(action)
    until_forking(quiet, forked)
    until.set()
    other = Running(computes(quiet, until, begun))
    assert not begun.wait(NEVER)
    over.set()
    assert begun.wait(SOON)
    assert other.done.wait(SOON)
    assert forked.done.wait(SOON)


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_begins_anew() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], str]:
        return lambda: made.append(name) or name  # type: ignore[func-returns-value]

    engine, held, over = PerProcess(make("parent"), make("child")), threading.Event(), threading.Event()

    def hold() -> None:
        with engine._lock:
            held.set()
            over.wait(SOON)

    def child() -> tuple[bool, str, list[str]]:
        with forks.computing():
            return forks.forked(), engine.get(), made

    holder = Running(hold)
    assert held.wait(SOON)
    assert fork(child)() == str((True, "child", ["parent", "child"]))
    over.set()
    assert holder.done.wait(SOON)
    assert (forks.forked(), engine.get(), made) == (False, "parent", ["parent"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_processes_are_forked_while_no_thread_computes() -> None:
    until, begun = threading.Event(), threading.Event()
    Running(computes(forks._quiet, until, begun))
    assert begun.wait(SOON)
    said: list[str] = []
    forked = Running(lambda: said.append(fork(lambda: "done")()))
    until_forking(forks._quiet, forked)
    assert not forked.done.wait(NEVER)
    until.set()
    assert forked.done.wait(SOON)
    with forks.computing():  # and the parent goes on
        said.append(fork(lambda: "done")())
    assert said == ["'done'"] * 2


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_is_of_one_process_says_what_to_send(send: Callable[[object], object]) -> None:
    with pytest.raises(InputError, match="a loaded OfOneProcess cannot be pickled, copied or sent to another process"):
        send(forks.OfOneProcess())
