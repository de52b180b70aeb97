"""Reading and writing at offsets, with the calls of POSIX and without them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.storage import positioned
from lensmith.exporters.storage.positioned import PositionedFile


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positioned, "sys", SimpleNamespace(platform="win32"))
    for name in ("pread", "pwrite", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)


@pytest.fixture(params=["posix", "windows"])
def system(request: pytest.FixtureRequest) -> None:
    if request.param == "windows":
        request.getfixturevalue("windows")


@pytest.mark.usefixtures("system")
def test_threads_write_at_their_offsets(tmp_path: Path) -> None:
    blocks = [bytes([number]) * (1000 + number) for number in range(64)]
    offsets = [sum(map(len, blocks[:number])) for number in range(64)]
    with open(tmp_path / "file", "w+b") as opened, ThreadPoolExecutor(8) as pool:
        file = PositionedFile(opened.fileno())
        list(pool.map(file.write, blocks, offsets))
        assert list(pool.map(file.read, map(len, blocks), offsets)) == blocks
        assert file.read(10, offsets[-1] + len(blocks[-1])) == b""
    assert (tmp_path / "file").read_bytes() == b"".join(blocks)


@pytest.mark.usefixtures("system")
def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pwrite", "write"):
        if hasattr(os, name):
            plain = getattr(os, name)
            monkeypatch.setattr(os, name, lambda fd, data, *at, plain=plain: plain(fd, data[:3], *at))
    with open(tmp_path / "file", "w+b") as opened:
        PositionedFile(opened.fileno()).write(b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"


@pytest.mark.usefixtures("windows")
def test_an_export_without_the_calls_of_posix(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    made = export(prepare(tiny_checkpoint, Options()), tmp_path / "bundle", golden="never").path
    for name in ("decoder.data", "vision_encoder.data"):
        assert (made / name).read_bytes() == (tiny_bundle / name).read_bytes()
