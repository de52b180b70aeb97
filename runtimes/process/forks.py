"""Engines across a fork: the child opens its own, since the threads of its parent's engines did not come with it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, NoReturn, TypeVar

from ...targets.errors import InputError

T = TypeVar("T")
LONGEST_WAIT = 60.0  # seconds that a fork waits for a computation, and the other way round
_first = os.getpid()


class OfOneProcess:
    """What no pickle carries to another process: it says so, and what to send instead."""

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"a loaded {type(self).__name__} cannot be pickled, copied or sent to another process; send the path of "
            "its bundle, and load that once in each worker (Pool(initializer=...)), or load it before a fork"
        )


class PerProcess(Generic[T]):
    """What `make` gives here at once, and `remake` in a forked process when it asks for it.

    With `remake` None, as for what lies on a GPU, such a process gets an InputError. What the parent made is never
    freed in the child: that would wait for threads that are not there.
    """

    def __init__(self, make: Callable[[], T], remake: Callable[[], T] | None) -> None:
        self._remake = remake
        self._lock, self._made = threading.Lock(), [make()]
        _every.add(self)

    def get(self) -> T:
        """That of this process."""
        with self._lock:
            if not self._made:
                if self._remake is None:
                    raise InputError(
                        "a model on a GPU cannot be used in a process that was forked after it was loaded; load it in "
                        "each process, or start processes with the method 'spawn'"
                    )
                self._made.append(self._remake())
            return self._made[0]

    def leave_behind(self) -> None:
        """In the child, as soon as it runs: begin anew."""
        # Also when the interpreter ends, where modules lose what they refer to
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._made))
        self._lock, self._made = threading.Lock(), []


_every: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


class _Quiet:
    """Lets a process fork only while none of its threads computes.

    Libraries for arithmetic hold locks meanwhile, and a child would wait for ever for threads that do not come with it.
    """

    def __init__(self) -> None:
        self._changed, self._computing, self._forking = threading.Condition(), set[int](), False

    @contextmanager
    def computing(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._forking, LONGEST_WAIT)
            self._computing.add(me)
        try:
            yield
        finally:
            with self._changed:
                self._computing.discard(me)
                self._changed.notify_all()

    def begin_fork(self) -> None:
        """Wait for the others; what follows in this thread is the fork."""
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: self._computing <= {threading.get_ident()}, LONGEST_WAIT)

    def end_fork(self) -> None:
        """In the parent: let the others go on."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


_quiet = _Quiet()


def computing() -> AbstractContextManager[None]:
    """Surrounds what must not be under way in another thread when the process is forked; not to be nested."""
    return _quiet.computing()


def forked() -> bool:
    """Whether this process was forked since this module was loaded."""
    return os.getpid() != _first


def _in_child() -> None:
    _quiet.__init__()  # type: ignore[misc]
    for each in list(_every):
        each.leave_behind()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_quiet.begin_fork, after_in_parent=_quiet.end_fork, after_in_child=_in_child)
