"""Items are made one ahead, in a thread that ends with whoever takes them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import wait
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.runtimes.process import look_ahead
from lensmith.runtimes.process.cores import allowed, at_most, spread
from lensmith.runtimes.process.interrupt import Interrupt, Interrupted, check, heeding
from lensmith.runtimes.process.look_ahead import one_ahead

from tests.helpers.forking import SECONDS


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lensmith-ahead")]


@given(items=st.lists(st.none() | st.integers()), taken=st.integers(0, 10))
def test_all_come_in_their_order(items: list[int | None], taken: int) -> None:
    with one_ahead(item for item in items) as ahead:
        assert [item for item, _ in zip(ahead, range(taken), strict=False)] == items[:taken]
    assert not running()


def test_one_is_made_while_the_caller_works_and_no_more() -> None:
    begun = [threading.Event() for _ in range(6)]

    def made() -> Generator[int, None, None]:
        for number in range(5):
            begun[number].set()
            yield number
        begun[5].set()

    with one_ahead(made()) as ahead:
        for number in ahead:
            assert begun[number + 1].wait(SECONDS)
            assert not any(event.is_set() for event in begun[number + 2 :])


@pytest.mark.parametrize("place", range(3))
def test_a_failure_comes_in_its_place(place: int) -> None:
    def made() -> Generator[int, None, None]:
        for number in range(3):
            if number == place:
                raise ZeroDivisionError
            yield number

    taken = list[int]()
    with pytest.raises(ZeroDivisionError), one_ahead(made()) as ahead:
        taken.extend(ahead)
    assert taken == [*range(place)]
    assert not running()


def test_a_caller_that_leaves_ends_what_is_made() -> None:
    """It is Ctrl-C that comes while the second is made, which heeds it."""
    making, ended = threading.Event(), list[bool]()

    def made() -> Generator[int, None, None]:
        try:
            yield 0
            making.set()
            for _ in count():
                check()
        finally:
            ended.append(True)

    def interrupted(ahead: Iterator[int]) -> None:
        next(ahead)
        assert making.wait(SECONDS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), one_ahead(made()) as ahead:
        interrupted(ahead)
    assert ended == [True]
    assert not running()


def test_waiting_ends_with_the_callers_work() -> None:
    interrupt, making = Interrupt(), threading.Event()

    def made() -> Generator[int, None, None]:
        making.set()
        for number in count():
            check()
            if number < 0:
                yield number

    def stop() -> None:
        making.wait(SECONDS)
        interrupt.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with heeding(interrupt), pytest.raises(Interrupted), one_ahead(made()) as ahead:
        next(ahead)
    stopper.join()
    assert not running()


def test_one_thread_beside_a_caller_that_works_and_all_for_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_for, parts = list[Any](), list[int]()
    second, third = threading.Event(), threading.Event()

    def waiting(futures: list[Any], timeout: float) -> Any:
        if futures[0] not in waited_for:
            waited_for.extend(futures)
        if len(waited_for) == 3:
            third.set()
        return wait(futures, timeout)

    def made() -> Generator[int | None, None, None]:
        for number in range(3):
            assert number < 2 or third.wait(SECONDS)
            done = list[slice]()
            spread(done.append, 8, 1)
            parts.append(len(done))
            if number == 1:
                second.set()
            yield allowed()

    monkeypatch.setattr(look_ahead, "wait", waiting)
    with at_most(4), one_ahead(made()) as ahead:
        assert next(ahead) == 4
        assert second.wait(SECONDS)
        assert [*ahead] == [4, 4]
    assert parts == [4, 1, 4]
