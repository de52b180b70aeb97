"""What is kept for a bundle and a device: it holds for these alone, and no broken file fails a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from lensmith.runtimes import InputError, Model, load
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.tuning import tuned_files
from lensmith.runtimes.tuning.tuned_files import (
    check_folder,
    conditions,
    forget_tunings,
    keep_tuning,
    read_tuning,
    tuned_elsewhere,
    tuned_file,
    tuning_of,
)
from lensmith.runtimes.tuning.tuning import USUAL, Tuning

SOME = Tuning(threads=1, chunk=32)
pytestmark = pytest.mark.usefixtures("tunings")


def test_nothing_is_kept_at_first(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert read_tuning(bundle) is None
    assert tuning_of(bundle) is USUAL
    assert forget_tunings(bundle) == 0
    assert not tuned_elsewhere(bundle)


def test_each_bundle_has_its_own(tiny_bundle: Path, made: Callable[[str], Path]) -> None:
    mine, other = open_bundle(tiny_bundle), open_bundle(made("tarn-2b"))
    keep_tuning(mine, Tuning())
    keep_tuning(mine, SOME)
    keep_tuning(other, Tuning(threads=2))
    assert (tuning_of(mine), tuning_of(other)) == (SOME, Tuning(threads=2))
    assert forget_tunings(mine) == 1
    assert (tuning_of(mine), tuning_of(other)) == (USUAL, Tuning(threads=2))


def test_a_copy_of_a_bundle_is_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    keep_tuning(open_bundle(tiny_bundle), SOME)
    (tmp_path / "copy").symlink_to(tiny_bundle)
    assert tuning_of(open_bundle(tmp_path / "copy")) == SOME


OTHERS: dict[str, Any] = {
    "processor": lambda: "another one",
    "wanted_instructions": lambda _: "avx1024",
    "libraries": lambda *_, **__: "onnxruntime 9",
    "usable_cores": lambda: 77,
    "available_cores": lambda: 77,
    "own_version": lambda: "9.9",
}


@pytest.mark.parametrize("name", OTHERS)
def test_under_other_conditions_it_does_not_hold(name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(tiny_bundle)
    keep_tuning(bundle, SOME)
    monkeypatch.setattr(tuned_files, name, OTHERS[name])
    assert read_tuning(bundle) is None
    assert tuned_elsewhere(bundle)
    keep_tuning(bundle, Tuning(threads=2))
    monkeypatch.undo()
    assert forget_tunings(bundle) in (0, 2)  # the folder is undone, too


def test_other_kernels_and_devices_have_their_own(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    keep_tuning(bundle, SOME)
    assert tuning_of(bundle, native=False) is USUAL
    assert tuning_of(bundle, device="cpu") is USUAL
    assert tuning_of(bundle, device="nonsense") is USUAL
    keep_tuning(bundle, Tuning(threads=2), device="cpu")
    assert tuning_of(bundle, device="cpu") == Tuning(threads=2)


WRONG: list[Any] = [None, [], {"threads": 0}, {"threads": "2"}, {"threads": 1.5}, {"threads": True}, {"speed": 1},
                    {"chunk": -1}, {"ngram_drafts": 8}, {"head_drafts": 1 << 70}]  # fmt: skip
BROKEN = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}',
    *(json.dumps({"format": 1, "bundle": "?", "tuning": tuning}).encode() for tuning in WRONG),
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_told_of_once(content: bytes, tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = open_bundle(tiny_bundle)
    path = keep_tuning(bundle, SOME)
    path.write_bytes(content.replace(b'"?"', json.dumps(bundle.digest).encode()))
    tuned_files._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        model = load(tiny_bundle, context=64)
        load(tiny_bundle, context=64)
    assert isinstance(model, Model)
    assert model.tuning is USUAL
    (record,) = caplog.records
    assert "is no tuning and is left out" in record.message
    assert "\n" not in record.message
    assert keep_tuning(bundle, SOME) == path
    assert tuning_of(bundle) == SOME


def test_a_file_of_another_bundle_by_its_name(
    tiny_bundle: Path, made: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = keep_tuning(open_bundle(made("tarn-2b")), SOME)
    path.rename(tuned_file(open_bundle(tiny_bundle)))
    assert tuning_of(open_bundle(tiny_bundle)) is USUAL
    assert "of another bundle" in caplog.text


def test_where_nothing_can_be_written(tiny_bundle: Path, tunings: Path) -> None:
    tunings.parent.write_text("a file")
    for act in (check_folder, lambda: keep_tuning(open_bundle(tiny_bundle), SOME)):
        with pytest.raises(InputError, match=r"cannot hold what is measured .*; name a folder .* XDG_CACHE_HOME"):
            act()
    assert tuning_of(open_bundle(tiny_bundle)) is USUAL


def test_without_the_engine_there_is_no_tuning(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(tiny_bundle)
    keep_tuning(bundle, SOME)

    def missing(*_: Any, **__: Any) -> str:
        raise ModuleNotFoundError("No module named 'llama_cpp'")

    monkeypatch.setattr(tuned_files, "libraries", missing)
    assert tuning_of(bundle) is USUAL


def test_the_conditions_can_be_read(tiny_bundle: Path) -> None:
    line = conditions(open_bundle(tiny_bundle))
    assert "\n" not in line
    assert "onnxruntime" in line
    assert "usable of" in line
    data = json.loads(keep_tuning(open_bundle(tiny_bundle), SOME).read_text())
    assert data["conditions"] == line


def test_the_folder_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cache(name: str, *, appauthor: bool) -> Path:
        assert (name, appauthor) == ("lensmith", False)
        return tmp_path

    monkeypatch.setattr(platformdirs, "user_cache_path", cache)
    assert FOLDER() == tmp_path / "tuned"


FOLDER = tuned_files.tuned_folder  # before a fixture takes its place
