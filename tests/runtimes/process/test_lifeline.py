"""A process that is started for a piece of work ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lensmith.runtimes.process.lifeline import ORPHANED, lifeline

CHILD = """
import os, sys, time
from pathlib import Path
from lensmith.runtimes.process.lifeline import end_with_parent
end_with_parent()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(120)
"""
PARENT = """
import subprocess, sys
from lensmith.runtimes.process.lifeline import lifeline
with lifeline() as line:
    subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=line)
"""


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="tells the dead from the living by /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_child_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(place)])
    wait_until(lambda: place.is_file() and place.read_text())
    child = int(place.read_text())
    assert lives(child)
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not lives(child))


def test_a_child_ends_with_its_line_and_one_that_is_done_ends_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "pid")]
    with lifeline() as line:
        child = subprocess.Popen(command, stdin=line)
        wait_until((tmp_path / "pid").is_file)
        assert child.poll() is None
    assert child.wait(30) == ORPHANED
    with lifeline() as line:
        done = subprocess.run([*command[:2], CHILD.replace("120", "0"), command[3]], stdin=line, check=False)
    assert done.returncode == 0
