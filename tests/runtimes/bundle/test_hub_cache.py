"""Bundles in the cache of huggingface_hub, where each file is a link to a blob; links to anything else are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.targets.errors import InputError

from tests.helpers.extras import Ran


@pytest.fixture(params=["", "int4"])
def snapshot(tiny_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The bundle as a snapshot, or in a folder of one."""
    repository = tmp_path / "models--maker--name"
    folder = repository / "snapshots" / "0123abc" / str(request.param)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for index, file in enumerate(sorted(tiny_bundle.iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(index))
        up = Path("../../..") if request.param else Path("../..")
        (folder / file.name).symlink_to(up / "blobs" / str(index))
    return folder


def test_a_snapshot_is_a_bundle(
    cli: Callable[..., Ran], tiny_bundle: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ("Hi", "--greedy", "--max-new-tokens", 4)
    expected = cli("run", tiny_bundle, *question).out
    assert cli("run", snapshot, *question).out == expected
    assert cli("inspect", snapshot).code == 0
    open_bundle(snapshot, check="sha256")
    monkeypatch.chdir(snapshot)
    assert cli("run", ".", *question).out == expected


@pytest.mark.parametrize("place", ["beside", "other repository", "other folder of the cache"])
def test_links_to_other_places_are_refused(snapshot: Path, tmp_path: Path, place: str) -> None:
    repository = tmp_path / "models--maker--name"
    folder = {"beside": tmp_path, "other repository": tmp_path / "models--other" / "blobs",
              "other folder of the cache": repository / "refs"}[place]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = snapshot / "tokenizer.json"
    shutil.copyfile(file, folder / "copy")
    file.unlink()
    file.symlink_to(folder / "copy")
    with pytest.raises(InputError, match=r"tokenizer\.json leads out of the bundle through a link"):
        open_bundle(snapshot)


def test_blobs_beside_an_ordinary_folder_are_no_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "a" / "b")
    (tmp_path / "blobs").mkdir()
    (bundle / "decoder.data").rename(tmp_path / "blobs" / "0")
    (bundle / "decoder.data").symlink_to("../../blobs/0")
    with pytest.raises(InputError, match="leads out of the bundle"):
        open_bundle(bundle)
