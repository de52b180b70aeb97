"""A server in a process of its own, for as long as somebody asks it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

LENSMITH = (sys.executable, "-c", "from lensmith.cli import main; main()")


@contextmanager
def local_server(
    command: Sequence[object], *, health: str = "/health", seconds: float = 300
) -> Iterator[tuple[str, int]]:
    """The address of what the command serves at a free port, which `--port` tells it, and its process's id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([*map(str, command), "--port", str(port)], stderr=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while True:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no answer from {' '.join(map(str, command))}; exit code {server.poll()}")
            try:
                if httpx.get(address + health).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield address, server.pid
    finally:
        server.terminate()
        server.wait(30)
