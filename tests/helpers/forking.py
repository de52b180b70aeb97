"""Work in threads and in forked processes that must end."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

SECONDS = 100  # after which a child counts as hanging


def in_threads(*functions: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def fork(work: Callable[[], Any]) -> Callable[[], str]:
    """What the work gives, or its error, in a child that ends as an interpreter does; call it to wait for that."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            os.write(sender, repr(work()).encode())
        except BaseException as error:
            os.write(sender, f"{type(error).__name__}: {error}".encode())
        os.close(sender)
        gc.collect()
        os._exit(0)
    os.close(sender)

    def wait() -> str:
        with os.fdopen(receiver) as file:
            text = file.read()
        assert os.waitpid(child, 0)[1] == 0
        return text

    return wait
