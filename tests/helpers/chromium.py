"""A headless Chromium, driven over its DevTools protocol through a pair of pipes."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-pipe")  # fmt: skip
SECONDS = 60.0  # for one step, on a busy machine


def program() -> str | None:
    """The path of a Chromium on this machine."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """One page, of the size of a phone or a screen."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._number = read, write, b"", 0
        self.requests: list[str] = []  # addresses that it asked for
        self.problems: list[str] = []  # exceptions and errors of its scripts
        target = self._ask("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True}, None)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        return self._ask(method, parameters, self._session)

    def see(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        given = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in given, given["exceptionDetails"]
        return given["result"].get("value")

    def wait(self, expression: str, seen: Callable[[Any], None] = lambda _: None) -> Any:
        """The value of an expression once it is true; `seen` gets all values before."""
        end = time.monotonic() + SECONDS
        while not (value := self.see(expression)):
            seen(value)
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.02)
        return value

    def resize(self, width: int, height: int, *, phone: bool) -> None:
        """Be as large as some device."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def open(self, address: str) -> None:
        """Go to an address."""
        self.ask("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def drop(self, file: Path, x: int, y: int) -> None:
        """Drag a file into the page and let it go there."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.ask("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def type(self, place: str, text: str, *, enter: bool = True) -> None:
        """Write into a field, and press Enter."""
        self.see(f"document.querySelector({json.dumps(place)}).focus()")
        self.ask("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp") if enter else ():
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def _ask(self, method: str, parameters: dict[str, Any], session: str | None) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        told = json.dumps(message | ({"sessionId": session} if session else {}))
        os.write(self._write, told.encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], SECONDS)
            piece = os.read(self._read, 1 << 16) if ready else b""
            assert piece, "Chromium says nothing"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]))
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(json.dumps(event["params"]["entry"]))


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A page of a new browser, whose files are in the folder `profile`."""
    found = program()
    assert found is not None
    (its_read, write), (read, its_write) = os.pipe(), os.pipe()
    # Its ends of the pipes are the files 3 and 4.
    start = f"import os, sys; os.dup2({its_read}, 103); os.dup2({its_write}, 104); os.dup2(103, 3); os.dup2(104, 4); "
    start += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-S", "-c", start, found, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(command, pass_fds=(its_read, its_write), stderr=subprocess.DEVNULL)
    os.close(its_read)
    os.close(its_write)
    try:
        yield Page(read, write)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
