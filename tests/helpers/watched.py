"""Commands of lensmith that ran under observation: which sockets they opened and which files they wrote.

Observed by strace where that works, which sees native libraries too. Elsewhere by Python's audit hooks; libraries that
report do then show by what they keep in the user's home, which is an empty folder here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.extras import MAIN

Command = Callable[[Path, str], list[str]]  # of the report to write and the Python code to run

AUDIT = """
import os, socket, sys
report = os.open({report!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(report, f"socket {{event}}\\n".encode())
    elif event == "socket.__new__" and arguments[1] != getattr(socket, "AF_UNIX", None):
        os.write(report, f"socket of family {{arguments[1]}}\\n".encode())
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(arguments[0], str):
        os.write(report, f"file {{os.path.abspath(arguments[0])}}\\n".encode())
    elif event == "os.mkdir":
        os.write(report, f"file {{os.path.abspath(os.fsdecode(arguments[0]))}}\\n".encode())
sys.addaudithook(watch)
"""


@dataclass(frozen=True)
class Watched:
    """What a command did; `files` and folders that it opened for writing or made."""

    code: int
    out: str
    err: str
    sockets: list[str]
    files: list[Path]


def watched(observer: str, folder: Path, *arguments: object, code: str = MAIN, **settings: str) -> Watched:
    """Run a command of lensmith, or other `code`, with a home, a temporary and a working folder in `folder`."""
    places = {name: folder / name for name in ("home", "temp", "cwd")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    report = folder / "report"
    report.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "HF_"))}
    environment |= {"HOME": str(places["home"]), "TMPDIR": str(places["temp"]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*OBSERVERS[observer](report, "import sys;" + code), *map(str, arguments)]
    ran = subprocess.run(
        command, env=environment | settings, cwd=places["cwd"], capture_output=True, text=True, check=False
    )
    seen = report.read_text(errors="replace") if report.exists() else ""
    sockets, files = READERS[observer](seen, places["cwd"])
    return Watched(ran.returncode, ran.stdout, ran.stderr, sockets, files)


@cache
def observers() -> list[str]:
    """Those that work here, the most observant first."""
    strace = shutil.which("strace")
    works = strace is not None and subprocess.run([strace, "-f", "-o", os.devnull, "true"], check=False).returncode == 0
    return ["strace", "audit"] if works else ["audit"]


def _strace(report: Path, code: str) -> list[str]:
    calls = "trace=socket,open,openat,creat,mkdir,mkdirat"
    return ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "4096", "-e", calls, "-o", str(report),
            sys.executable, "-c", code]  # fmt: skip


def _audit(report: Path, code: str) -> list[str]:
    return [sys.executable, "-c", AUDIT.format(report=str(report)) + code]


def _of_strace(text: str, cwd: Path) -> tuple[list[str], list[Path]]:
    done = [line for line in text.splitlines() if " = -1 " not in line]
    sockets = [line for line in done if "socket(" in line and "AF_UNIX" not in line]
    made = [line for line in done if re.search(r"O_WRONLY|O_RDWR|O_CREAT|mkdir|creat\(", line)]
    names = [found[1] for line in made if (found := re.search(r'"([^"]*)"', line))]
    return sockets, [cwd / name for name in names]


def _of_audit(text: str, cwd: Path) -> tuple[list[str], list[Path]]:
    lines = text.splitlines()
    files = [cwd / line.removeprefix("file ") for line in lines if line.startswith("file ")]
    return [line for line in lines if line.startswith("socket")], files


OBSERVERS: dict[str, Command] = {"strace": _strace, "audit": _audit}
READERS = {"strace": _of_strace, "audit": _of_audit}
