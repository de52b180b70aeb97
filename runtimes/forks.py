"""Engines across a fork: the child opens its own, since the threads of its parent's engines did not come with it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..targets.errors import InputError

T = TypeVar("T")


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
        _keep_for_ever(self._made)
        self._lock, self._made = threading.Lock(), []


_every: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


def _keep_for_ever(value: Any) -> None:
    """Also when the interpreter ends, where modules lose what they refer to."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _in_child() -> None:
    for each in list(_every):
        each.leave_behind()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
