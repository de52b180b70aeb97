"""Output files appear whole or not at all, and an unusable place is refused before the work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes.storage.new_file import check_new_file, new_file, write_text
from lensmith.targets.errors import InputError


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "a.html"
    with new_file(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    with pytest.raises(TypeError), new_file(path) as file:
        file.writelines([b"other", "and no bytes"])  # type: ignore[list-item]
    assert path.read_bytes() == b"half"
    assert [each.name for each in path.parent.iterdir()] == ["a.html"]  # nothing of the other is left
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert [each.name for each in path.parent.iterdir()] == ["a.html"]


def test_links_and_devices_stay(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    write_text(os.devnull, "gone")
    assert not Path(os.devnull).is_file()
    code = "import sys; from lensmith.runtimes.storage.new_file import write_text; write_text('/dev/stdout', 'shown')"
    if Path("/dev/stdout").exists():
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"shown"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_are_written_as_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(tmp_path / "pipe", "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert [each.name for each in tmp_path.iterdir() if each.is_fifo()] == ["pipe"]


def test_unusable_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "a", "no folder that you may write to")):
        with pytest.raises(InputError, match=words):
            check_new_file(path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no folder that you may write to"):
        check_new_file(tmp_path / "new")
    check_new_file(tmp_path / "file")


def test_compare_refuses_before_it_measures(
    cli: Callable[..., Any], tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("lensmith.exporters.comparing.comparison.compare", lambda *_: pytest.fail("measured"))
    for option in ("--json", "--html"):
        (tmp_path / "file").touch()
        ran = cli("compare", tiny_bundle, "--against", tiny_checkpoint, option, tmp_path / "file" / "out")
        assert (ran.code, "no folder that you may write to" in ran.err) == (2, True)
