"""Pipes, devices, sockets and made-up files in the place of images, videos, tasks and other files from outside.

Each ends in one sentence, soon, and in little memory; a pipe with a picture in it is read.
"""

from __future__ import annotations

import io
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.comparing.cases import read_tasks
from lensmith.runtimes.media.frames import open_clip
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.storage.files import read_json
from lensmith.runtimes.storage.reading import MOST_STREAMED, read_limited, read_utf8
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers.windows import as_on_windows

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
SOON_S = 5  # of processor time, on any machine; a hang would last for ever
WORDS = {
    "/dev/zero": "is a stream of more than 67108864 bytes", "/dev/urandom": "is a stream of more than",
    "/dev/full": "is a stream of more than", "FIFO": "a pipe that nobody writes into", "SOCKET": "No such device",
    "FOLDER": "Is a directory", "/proc/self/mem": "cannot be read", "/proc/self/pagemap": "cannot be read|more than",
    "NOWHERE": "No such file", "ENDLESS": "is a stream of more than", "UNUSED": "a pipe that nobody writes into",
}  # fmt: skip
READERS: dict[str, Callable[[Path], Any]] = {
    "image": open_image,
    "video": open_clip,
    "tasks": lambda path: read_tasks(path, None),
    "json": read_json,
}


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes the files that are no devices."""
    opened: list[Any] = []

    def make(name: str) -> Path:
        path = tmp_path / name.lower()
        if name.startswith("/"):
            return Path(name)
        if name == "FIFO":
            os.mkfifo(path)
        elif name == "FOLDER":
            path.mkdir()
        elif name == "SOCKET":
            opened.append(socket.socket(socket.AF_UNIX))
            opened[-1].bind(str(path))
        elif name in ("ENDLESS", "UNUSED"):
            pipe = subprocess.Popen(["cat", "/dev/zero"] if name == "ENDLESS" else ["true"], stdout=subprocess.PIPE)
            opened.append(pipe)
            assert pipe.stdout is not None
            if name == "UNUSED":
                pipe.wait()
            return Path(f"/dev/fd/{pipe.stdout.fileno()}")
        return path

    yield make
    for each in opened:
        if isinstance(each, subprocess.Popen):
            each.kill()
            each.communicate()
        else:
            each.close()


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("kind", READERS)
def test_special_files_end_in_one_sentence(special: Callable[[str], Path], kind: str, name: str) -> None:
    path = special(name)
    if name.startswith("/") and not path.exists():
        pytest.skip(f"{name} is not here")
    started = time.process_time()
    with pytest.raises(InputError, match=WORDS[name]) as caught:
        READERS[kind](path)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < SOON_S


def test_memory_stays_small(tiny_bundle: Path) -> None:
    """Beside what a loaded model takes."""
    code = ("import resource, sys; from lensmith.runtimes import load; model = load(sys.argv[1]); "
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak()\n"
            "try: model.ask('Hi', ['/dev/zero'])\nexcept ValueError: pass\nexcept Exception as e: print(e)\n"
            "print((peak() - before) // 1024)")  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    sentence, megabytes = ran.stdout.splitlines()
    assert "is a stream of more than" in sentence
    assert int(megabytes) < 160


def test_pipes_are_read(tmp_path: Path) -> None:
    """One that is written late, in pieces, and one whose writer comes after the reader."""
    Image.new("RGB", (64, 48), (1, 2, 3)).save(tmp_path / "a.png")
    Image.new("RGB", (32, 32)).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")]
    )
    os.mkfifo(tmp_path / "pipe")
    for file, reader in (("a.png", open_image), ("a.gif", open_clip)):
        data = (tmp_path / file).read_bytes()

        def write(data: bytes = data) -> None:
            time.sleep(0.1)
            with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
                pipe.write(data[:50])
                time.sleep(0.8)  # longer than a pipe may be without a writer
                pipe.write(data[50:])

        thread = threading.Thread(target=write)
        thread.start()
        opened: Any = reader(tmp_path / "pipe")
        thread.join()
        assert (opened.size == (64, 48)) if file == "a.png" else (opened.total == 2)


@pytest.mark.parametrize(("begun", "waited"), [(b"", "0.8"), (b"\x89PNG", "0.2")])
def test_a_silent_writer_is_waited_for_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes, waited: str
) -> None:
    """It has less than a second to begin, and then as long as a network may take to go on."""
    monkeypatch.setattr("lensmith.runtimes.storage.reading.SILENT_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that opening waits for nobody
    os.write(writer, begun)
    with pytest.raises(InputError, match=f"nothing came for {waited} s"):
        open_image(tmp_path / "pipe")
    os.close(writer)


def test_a_program_behind_a_pipe_may_begin_late(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As `--image <(curl …)` gives its output: under a name of the descriptor alone; the wait is announced."""
    monkeypatch.setattr("lensmith.runtimes.storage.reading.BEGINNING_S", 0.1)
    reader, writer = os.pipe()
    content = io.BytesIO()
    Image.new("RGB", (64, 48)).save(content, "PNG")

    def write() -> None:
        time.sleep(0.4)
        os.write(writer, content.getvalue())
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert open_image(f"/dev/fd/{reader}").size == (64, 48)
    assert caplog.messages == [f"waiting up to 10 s for the program that writes /dev/fd/{reader}"]
    thread.join()
    os.close(reader)


def test_limits_count_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_limited(tmp_path / "file", 5, "") == b"12345"
    with pytest.raises(InputError, match="has 5 bytes, more than the limit of 4 bytes"):
        read_limited(tmp_path / "file", 4, "")
    assert read_limited("/dev/null", 5, "") == b""
    with pytest.raises(InputError, match="stream of more than 100 bytes"):
        read_limited("/dev/zero", 100, "")
    assert MOST_STREAMED == 1 << 26
    (tmp_path / "file").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"is not UTF-8 text .* at byte 3\); expected tasks"):
        read_utf8(tmp_path / "file", 10, "tasks")


def test_made_up_files_are_read(tmp_path: Path) -> None:
    if Path("/proc/self/status").exists():
        assert b"Name:" in read_limited("/proc/self/status", 1 << 20, "")


def test_without_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a read waits by itself."""
    windows = as_on_windows("runtimes.storage.reading", monkeypatch)
    monkeypatch.delattr(select, "poll")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe that nobody writes into"):
        windows.read_limited(tmp_path / "pipe", 100, "a file")
    (tmp_path / "file").write_bytes(b"text")
    assert windows.read_limited(tmp_path / "file", 100, "a file") == b"text"
