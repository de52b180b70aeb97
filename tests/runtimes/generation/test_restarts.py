"""A model that is loaded again goes on from what is on disk, whatever became of the process that wrote it."""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.engines.engine_table import Wishes
from lensmith.runtimes.generation.prefill import shared
from lensmith.runtimes.generation.shelves import owner_of
from lensmith.runtimes.storage import cache_folder as module
from lensmith.runtimes.storage.array_files import read_arrays, write_arrays
from lensmith.targets.errors import InputError

from tests.helpers.extras import load
from tests.helpers.forking import SECONDS, fork
from tests.helpers.sessions import FILES, SYSTEM, alone, pictures, taken, turns

KINDS = [("qwen3_vl", "int4"), ("qwen3_5", "int4"), ("llava", "fp32"), ("qwen3_5 gguf", "f32")]
PICTURES = pictures()
FIRST = user_message("How many circles are there?", [PICTURES[0]])
LATER = [SYSTEM, user_message("What is this?", [PICTURES[1]])]


@pytest.fixture(scope="module")
def bundle(trained: Callable[[str, str], Path]) -> Path:
    return trained("qwen3_vl", "int4")


@pytest.fixture(scope="module")
def cold(bundle: Path) -> Model:
    return started(bundle, prefix_bytes=0)


def started(bundle: Path, folder: Path | None = None, **options: Any) -> Model:
    return load(bundle, threads=1, context=512, cache_folder=folder, **options)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def nothing_is_encoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(model.media, "vision", refused)
    monkeypatch.setattr("lensmith.runtimes.media.medium.decode_image", refused)


@pytest.mark.parametrize(("family", "precision"), KINDS)
def test_the_second_turn_behind_a_restart(
    family: str,
    precision: str,
    trained: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It computes its new tokens alone, and neither decodes nor encodes the picture."""
    path, question = trained(family, precision), user_message("How many circles? " * 12, [str(FILES[0])])
    before = started(path, tmp_path)
    said = before.generate([question], max_new_tokens=6, ignore_eos=True)
    said.read()
    before.flush()
    request = before.prepare([question])
    second = turns(question, said.text, "And squares?")
    expected = alone(started(path), second)
    again = started(path, tmp_path)
    with monkeypatch.context() as patch:
        nothing_is_encoded(again, patch)
        found, reused = taken(again, second)
    assert found == expected
    held = np.array([*request.prompt.ids, *said.ids[:-1]])
    common = shared(held, before.prepare(second).prompt.ids)
    assert reused == (request.turn_end if again.decoder.recurrent else common)
    assert reused >= len(request.prompt) - 16


def test_what_is_on_disk_is_private(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    model = started(bundle, folder)
    taken(model, [FIRST])
    model.flush()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(files(folder)) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def killed(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in(place: str, bundle: Path, folder: Path) -> None:
    """Answer a question, and another one in whose writing this process is killed at a place."""
    patch = pytest.MonkeyPatch()
    model = started(bundle, folder)
    taken(model, [FIRST])
    model.flush()
    write, unlink = write_arrays, Path.unlink

    def written(file: Any, arrays: Any) -> None:
        write(file, arrays)
        if place == "half of a file":
            file.truncate(file.tell() // 2)
        file.flush()
        killed()

    def removed(path: Path, **how: Any) -> None:
        unlink(path, **how)
        killed()

    if place in ("half of a file", "before its bytes are on disk"):
        patch.setattr(module, "write_arrays", written)
    elif place == "before it has its name":
        patch.setattr(Path, "replace", killed)
    elif place == "behind its name":
        patch.setattr(module, "sync_folder", killed)
    else:
        patch.setattr(Path, "unlink", removed)
        assert model.prefixes.shelf is not None
        model.prefixes.shelf.folder.most_bytes = 1_200_000  # about as much as the second needs by itself
    taken(model, LATER)
    model.flush()
    os._exit(0)


PLACES = ["half of a file", "before its bytes are on disk", "before it has its name", "behind its name",
          "while room is made"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_process_that_is_killed_while_it_writes(place: str, bundle: Path, cold: Model, tmp_path: Path) -> None:
    """What was there stays there, what was half written is never taken, and the next writer clears it away."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        killed_in(place, bundle, tmp_path)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = set(files(tmp_path))
    again = started(bundle, tmp_path)
    found, reused = taken(again, [FIRST])
    assert found == alone(cold, [FIRST])
    if place != "while room is made":
        assert reused == len(again.prepare([FIRST]).prompt) - 1
    assert taken(again, LATER)[0] == alone(cold, LATER)
    again.flush()
    assert kept <= set(files(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert taken(started(bundle, tmp_path), LATER) == (alone(cold, LATER), len(again.prepare(LATER).prompt) - 1)


def changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in its middle": lambda data: data[: len(data) // 2],
    "a byte changed": lambda data: changed(data, len(data) // 2),
    "a number of the header changed": lambda data: data.replace(b'"begin": ', b'"begin":9'),
    "no archive": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(
    damage: str, bundle: Path, cold: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are told of once, in a sentence each, and computed again."""
    model = started(bundle, tmp_path)
    taken(model, [FIRST])
    model.flush()
    written = files(tmp_path)
    for path in written:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    again = started(bundle, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert taken(again, [FIRST]) == (alone(cold, [FIRST]), 0)
        told = [record.getMessage() for record in caplog.records]
        assert sum("is no whole file of this cache and is left out" in line for line in told) == len(told) >= 2
        again.flush()
        caplog.clear()
        assert taken(started(bundle, tmp_path), [FIRST])[1] > 0
        assert not caplog.records


def test_files_of_others(
    bundle: Path, trained: Callable[[str, str], Path], cold: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another bundle, of other kernels, under another name: not taken; what is no cache's stays."""
    (tmp_path / "letter.npz").write_bytes(b"mine")
    written = dict[str, set[Path]]()
    for name, path, native in (("a", bundle, None), ("b", bundle, False), ("c", trained("qwen3_5", "int4"), None)):
        there = set(files(tmp_path))
        model = started(path, tmp_path, native=native)
        assert taken(model, [FIRST])[1] == 0
        model.flush()
        written[name] = set(files(tmp_path)) - there
        assert written[name]
    for path, other in zip(sorted(written["a"]), sorted(written["b"]), strict=True):
        path.write_bytes(other.read_bytes())
    assert taken(started(bundle, tmp_path), [FIRST]) == (alone(cold, [FIRST]), 0)
    assert "it belongs to another cache" in caplog.text
    assert (tmp_path / "letter.npz").read_bytes() == b"mine"


def test_owners_differ_where_states_would(bundle: Path, trained: Callable[[str, str], Path]) -> None:
    opened = open_bundle(bundle), open_bundle(trained("qwen3_5", "int4"))
    wishes = Wishes(512, threads=1), Wishes(512, threads=2), Wishes(512, threads=1, native=False)
    owners = [owner_of(opened[0], each) for each in wishes] + [owner_of(opened[1], wishes[0])]
    assert len(set(owners)) == len(owners)
    assert owner_of(opened[0], Wishes(1024, threads=1)) == owners[0]  # a longer context has the same states


def test_the_least_used_files_go_first(bundle: Path, cold: Model, tmp_path: Path) -> None:
    """And the limit holds for all that have the folder."""
    most = 450_000  # what they share, and of each what is its own, fit for some
    models = [started(bundle, tmp_path, cache_bytes=most) for _ in range(2)]
    asked = [[SYSTEM, user_message(f"What is {number}? " * 9)] for number in range(6)]
    for turn, messages in enumerate(asked):
        model = models[turn % 2]
        taken(model, messages)
        model.flush()
        taken(model, asked[0])  # used again and again
        model.flush()
        assert sum(path.stat().st_size for path in files(tmp_path)) <= most
    last = started(bundle, tmp_path, cache_bytes=most)
    reused = [taken(last, messages)[1] for messages in (asked[0], asked[5], asked[1])]
    shared = last.prepare(asked[1]).prompt.ids
    assert reused[0] == len(last.prepare(asked[0]).prompt) - 1
    assert reused[2] < len(shared) - 1
    assert taken(last, asked[1])[0] == alone(cold, asked[1])


def test_two_processes_write_at_once(bundle: Path, cold: Model, tmp_path: Path) -> None:
    """Into a folder that does not hold what they write: no file is broken, and each answers right."""
    asked = [[user_message(f"What is {number}? " * 20)] for number in range(5)]
    expected = [alone(cold, messages) for messages in asked]

    def work() -> list[list[int]]:
        model = started(bundle, tmp_path, cache_bytes=600_000)
        found = [taken(model, messages)[0] for messages in asked]
        model.flush()
        return found

    children = [fork(work) for _ in range(2)]
    assert [child() for child in children] == [repr(expected)] * 2
    model = started(bundle, tmp_path)
    for path in files(tmp_path):
        assert read_arrays(path)
    assert [taken(model, messages)[0] for messages in asked] == expected


def test_memory_is_not_needed(bundle: Path, cold: Model, tmp_path: Path) -> None:
    """States are read from disk each time where none may stay in memory."""
    model = started(bundle, tmp_path, prefix_bytes=0, feature_bytes=0)
    taken(model, [FIRST])
    model.flush()
    again = started(bundle, tmp_path, prefix_bytes=0)
    assert taken(again, [FIRST]) == (alone(cold, [FIRST]), len(again.prepare([FIRST]).prompt) - 1)
    assert again.prefixes.bytes == 0


def test_a_full_disk_costs_its_file_alone(
    bundle: Path, cold: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Any, arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    model = started(bundle, tmp_path)
    monkeypatch.setattr(module, "write_arrays", full)
    assert taken(model, [FIRST])[0] == alone(cold, [FIRST])
    model.flush()
    assert "could not be written (No space left on device); it will be computed again" in caplog.text
    assert not files(tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bytes without a folder": ({"cache_bytes": 1000}, "cache_bytes has no effect without a cache_folder"),
    "no bytes": ({"cache_folder": "x", "cache_bytes": 0}, "cache_bytes is 0"),
    "a size in words": ({"cache_folder": "x", "cache_bytes": "2GB"}, "cache_bytes is '2GB'"),
    "a file": ({"cache_folder": str(FILES[0])}, "cannot be a cache"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_such_caches(case: str, bundle: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        load(bundle, **options)


def test_a_server_that_ends_has_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends its process before Python would wait for the writer."""
    testclient = pytest.importorskip("fastapi.testclient", reason="needs lensmith[serve]")
    from lensmith.serving.routes import make_app
    from lensmith.serving.server_options import ServerOptions

    def slowly(file: Any, arrays: Any) -> None:
        time.sleep(0.2)
        write_arrays(file, arrays)

    monkeypatch.setattr(module, "write_arrays", slowly)
    question = [{"role": "user", "content": "Name three colours."}]
    with testclient.TestClient(make_app({"m": started(bundle, tmp_path)}, ServerOptions())) as client:
        body = {"model": "m", "messages": question, "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert files(tmp_path)
    assert taken(started(bundle, tmp_path), question)[1] > 0
