"""Bundles: what is written is what is opened, nothing half-written is ever seen, and every damage has its sentence."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.bundle.bundle_writer import BundleWriter, check_new_bundle
from lensmith.runtimes.bundle.checked_manifest import check_manifest
from lensmith.runtimes.bundle.opening import (
    MANIFEST,
    Bundle,
    open_bundle,
)
from lensmith.runtimes.storage import new_folder
from lensmith.runtimes.storage.array_files import read_arrays
from lensmith.runtimes.storage.files import (
    dump_json,
    hash_file,
    hash_files,
    is_disk_full,
    is_safe_name,
    require_space,
)
from lensmith.targets.errors import InputError, LensmithError

from tests.helpers.contents import content
from tests.helpers.manifests import CONTENT


def write(out: Path, data: bytes = b"graph", *, force: bool = True) -> Path:
    with BundleWriter(out, force) as bundle:
        bundle.add("decoder.onnx").write_bytes(data)
        bundle.add("golden/0.json").write_text("{}")
        return bundle.close(CONTENT)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "out")


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def change(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    edit(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(bundle: Path) -> None:
    opened: Bundle = open_bundle(bundle, check="sha256")
    files = {name: hash_file(bundle / name) for name in ("decoder.onnx", "golden/0.json")}
    assert opened.content == CONTENT | {"format_version": 1, "files": files}
    assert opened.file("golden/0.json").read_text() == "{}"
    with pytest.raises(InputError, match="is not a graph that lensmith runs: it is no ONNX model"):
        opened.graph("vision_encoder")
    with pytest.raises(InputError, match=r"no file 'decoder.onx'; did you mean 'decoder.onnx'\?"):
        opened.file("decoder.onx")
    with pytest.raises(InputError, match="no graph 'mtp'; known: vision_encoder"):
        opened.graph("mtp")
    assert entries(bundle.parent) == ["out"]


def test_the_context_is_that_of_the_bundle_at_most() -> None:
    bundle = Bundle(Path("b"), content(limits={"context": 100}))
    asked = [bundle.context(wanted, "tokens", usual)
             for wanted, usual in ((None, None), (None, 64), (None, 200), (1, 64), (100, 64))]  # fmt: skip
    assert asked == [100, 64, 100, 1, 100]
    for wanted in (0, 101):
        with pytest.raises(InputError, match=f"context.* {wanted}\\b"):
            bundle.context(wanted, "tokens")


def test_a_manifest_has_a_largest_size(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (bundle / MANIFEST).stat().st_size
    monkeypatch.setattr("lensmith.runtimes.bundle.opening.MANIFEST_BYTES", size)
    open_bundle(bundle)
    monkeypatch.setattr("lensmith.runtimes.bundle.opening.MANIFEST_BYTES", size - 1)
    with pytest.raises(InputError, match=f"more than {size - 1} bytes, too many for a manifest"):
        open_bundle(bundle)


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert (one / MANIFEST).read_bytes() == (two / MANIFEST).read_bytes()
    assert dump_json({"b": 1, "a": "ä"}) == '{\n  "a": "ä",\n  "b": 1\n}\n'


@pytest.mark.parametrize("exchange", [True, False])
def test_replaces_a_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(new_folder, "_exchange", lambda one, other: False)
    (bundle / "old").touch()
    write(bundle, b"new")
    assert open_bundle(bundle).file("decoder.onnx").read_bytes() == b"new"
    assert not (bundle / "old").exists()
    assert entries(bundle.parent) == ["out"]


def test_macos_exchanges_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamex_np(one: bytes, other: bytes, flags: int) -> int:
        return -1 if flags != 2 else len({one, other}) - 2

    names = tmp_path / "one", tmp_path / "other"
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ctypes, "CDLL", lambda name, use_errno: SimpleNamespace(renamex_np=renamex_np))
        meanwhile.setattr(sys, "platform", "darwin")
        assert new_folder._exchange(*names)
        assert not new_folder._exchange(names[0], names[0])


def test_the_lock_of_windows_is_no_content(tmp_path: Path) -> None:
    """It lies inside of a folder that must not be moved."""
    (tmp_path / ".partial.lock").touch()
    assert check_new_bundle(tmp_path) == tmp_path


def test_a_folder_that_is_in_use_stays_whole(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows moves no folder while a program has one of its files open."""
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == bundle:
            raise PermissionError(13, "Access is denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(new_folder, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write(bundle, b"new")
    assert open_bundle(bundle).file("decoder.onnx").read_bytes() == b"graph"
    assert entries(bundle.parent) == ["out"]


def test_what_stopped_between_two_moves_is_undone(bundle: Path) -> None:
    bundle.rename(bundle.with_name(".out.replaced"))
    with pytest.raises(InputError, match="is a bundle already"):
        write(bundle, b"new", force=False)
    assert open_bundle(bundle).file("decoder.onnx").read_bytes() == b"graph"
    assert entries(bundle.parent) == ["out"]


def test_two_folders_are_exchanged_or_stay(tmp_path: Path) -> None:
    """In one step, so that the name of a bundle is never without one."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "file").touch()
    done = new_folder._exchange(tmp_path / "one", tmp_path / "other")
    assert entries(tmp_path) == ["one", "other"]
    assert entries(tmp_path / ("other" if done else "one")) == ["file"]
    assert not entries(tmp_path / ("one" if done else "other"))


def test_a_bundle_is_replaced_only_when_told(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"out is a bundle already; replace it with --force \(in Python: force=True\)"):
        write(bundle, b"new", force=False)
    assert open_bundle(bundle).file("decoder.onnx").read_bytes() == b"graph"
    assert entries(bundle.parent) == ["out"]


@pytest.mark.parametrize("why", ["current folder", "below it", "mounted"])
def test_a_folder_that_cannot_be_moved_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """As `-o .` is, and a volume of a container."""
    out = tmp_path / "out"
    (out / "below").mkdir(parents=True)
    if why == "mounted":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    else:
        monkeypatch.chdir(out / "below" if why == "below it" else out)
    if why != "below it":
        (out / "below").rmdir()
        write(out if why == "mounted" else Path(), force=False)
        assert entries(out) == ["decoder.onnx", "golden", MANIFEST]
    else:
        with pytest.raises(InputError, match="exists and is not a bundle"):
            write(out, force=False)
        return
    identity = out.stat().st_ino
    (out / "old").touch()
    (out / "older").mkdir()
    built: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        staged(out, ("v1", "d1"), built, KeyboardInterrupt())
    assert open_bundle(out).file("decoder.onnx").read_bytes() == b"graph"  # the old one
    staged(out, ("v1", "d1"), built)
    assert built == ["vision", "decoder", "decoder"]
    assert open_bundle(out, check="sha256").file("decoder.onnx").read_bytes() == b"d1"
    assert entries(out) == ["decoder.onnx", MANIFEST, "vision"]
    assert (out.stat().st_ino, entries(tmp_path)) == (identity, ["out"])


@pytest.mark.parametrize("last", ["filling", "emptying"])
def test_an_interrupted_move_is_no_bundle(last: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old manifest goes first: without it, the rest is nothing. The new one comes last."""
    monkeypatch.chdir(bundle)
    rename, emptied = Path.rename, bundle / "decoder.onnx"

    def stopped(path: Path, target: Path) -> Path:
        if path == emptied if last == "emptying" else path.name == "golden":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(bundle, b"new")
    with pytest.raises(InputError, match="is not a bundle"):
        open_bundle(bundle)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InputError, match="the name of the new bundle is empty"):
        check_new_bundle("")


def test_refuses_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / MANIFEST).write_text("{}")
    for name in ("file", "folder"):
        with pytest.raises(InputError, match="exists and is not a bundle; choose another"):
            write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert entries(tmp_path) == ["empty", "file", "folder"]


def test_a_link_to_a_bundle_stays_a_link(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    write(bundle.parent / "link", b"new")
    assert (bundle.parent / "link").is_symlink()
    assert (bundle / "decoder.onnx").read_bytes() == b"new"


UNSAFE = (
    "../x",
    "/x",
    "a/../../x",
    "",
    ".",
    "a\\b",
    "C:/x",
    "a//b",
    "./a",
    "nul",
    "a/CON.txt",
    "Com1",
    "a:b",
    "a.",
    "a /b",
)  # fmt: skip  (the last six as Windows reads them)
SAFE = (MANIFEST, "stages.json")


@pytest.mark.parametrize("name", ["console.txt", "a/nul_1", "a.com1", ".a", "a b", "..a", "lpt10x"])
def test_names_that_are_like_unsafe_ones(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize("name", [*UNSAFE, *SAFE])
def test_unsafe_names_cannot_be_added(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"), BundleWriter(tmp_path / "out") as bundle:
        bundle.add(name)
    assert is_safe_name(name) == (name not in UNSAFE)
    assert entries(tmp_path) == []


def attempt(out: Path, act: Callable[[BundleWriter], object], content: dict[str, Any] = CONTENT) -> None:
    """Write a bundle in which `act` does something wrong."""
    with BundleWriter(out, force=True) as bundle:
        act(bundle)
        bundle.close(content)


def write_stray(bundle: BundleWriter) -> None:
    bundle.add("decoder.onnx").touch()
    (bundle.partial / "stray.data").touch()


def link_stray(bundle: BundleWriter) -> None:
    """A link to a folder, which is no file but would be in the bundle."""
    bundle.add("decoder.onnx").touch()
    (bundle.partial / "stray.link").symlink_to(bundle.out.parent)


def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(LensmithError, match="was not closed"), BundleWriter(tmp_path / "out"):
        pass
    with pytest.raises(LensmithError, match=r"decoder\.onnx was announced but not written"):
        attempt(tmp_path / "out", lambda bundle: bundle.add("decoder.onnx"))
    with pytest.raises(LensmithError, match=r"decoder\.onnx was announced but not written as a plain file"):
        attempt(tmp_path / "out", lambda bundle: bundle.add("decoder.onnx").symlink_to(__file__))
    with pytest.raises(LensmithError, match=r"stray\.data was written but not announced"):
        attempt(tmp_path / "out", write_stray)
    with pytest.raises(LensmithError, match=r"stray\.link was written but not announced"):
        attempt(tmp_path / "out", link_stray)
    assert entries(tmp_path) == []


def test_two_writers_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another process is writing"), BundleWriter(tmp_path / "out"):
        write(tmp_path / "out")


def staged(out: Path, keys: tuple[str, str], built: list[str], interrupt: BaseException | None = None) -> None:
    """Two stages; `interrupt` is raised in the second."""
    with BundleWriter(out, force=True) as bundle:
        with bundle.stage(keys[0], ["vision/a.onnx", "vision/a.data"]) as done:
            if not done:
                built.append("vision")
                bundle.add("vision/a.onnx").write_text(keys[0])
                bundle.add("vision/a.data").write_text("data")
        with bundle.stage(keys[1], ["decoder.onnx"]) as done:
            if not done:
                built.append("decoder")
                bundle.add("decoder.onnx").write_text("half")
                if interrupt:
                    raise interrupt
                bundle.add("decoder.onnx").write_text(keys[1])
        bundle.close(CONTENT)


def test_an_interrupted_build_resumes(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    built: list[str] = []
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        staged(bundle, ("v1", "d1"), built, KeyboardInterrupt())
    assert "is kept: the same command run again resumes" in caplog.text
    assert (bundle / "decoder.onnx").read_bytes() == b"graph"  # the old bundle is untouched
    staged(bundle, ("v1", "d1"), built)
    assert built == ["vision", "decoder", "decoder"]
    opened = open_bundle(bundle, check="sha256")
    assert sorted(opened.content["files"]) == ["decoder.onnx", "vision/a.data", "vision/a.onnx"]
    assert opened.file("decoder.onnx").read_text() == "d1"
    assert entries(bundle.parent) == ["out"]
    assert entries(bundle) == ["decoder.onnx", MANIFEST, "vision"]


@pytest.mark.parametrize("damage", ["key", "content", "missing", "stages"])
def test_a_stage_that_does_not_fit_is_built_again(tmp_path: Path, damage: str) -> None:
    built: list[str] = []
    with pytest.raises(RuntimeError):
        staged(tmp_path / "out", ("v1", "d1"), built, RuntimeError())
    partial = tmp_path / ".out.partial"
    if damage == "content":
        (partial / "vision/a.data").write_text("tada")
    elif damage == "missing":
        (partial / "vision/a.data").unlink()
    elif damage == "stages":
        (partial / "stages.json").write_text('{"v1": ')
    staged(tmp_path / "out", ("v2" if damage == "key" else "v1", "d1"), built)
    assert built == ["vision", "decoder", "vision", "decoder"]
    open_bundle(tmp_path / "out", check="sha256")


def test_files_of_a_stage_no_longer_used_are_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        staged(tmp_path / "out", ("v1", "d1"), [], RuntimeError())
    write(tmp_path / "out")
    assert entries(tmp_path / "out") == ["decoder.onnx", "golden", MANIFEST]


def test_other_files_of_an_interrupted_build_are_removed(tmp_path: Path) -> None:
    def stop(bundle: BundleWriter) -> None:
        with bundle.stage("v1", ["vision/a.onnx"]):
            bundle.add("vision/a.onnx").touch()
        bundle.add("mtp.onnx").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path / "out", stop)
    assert (tmp_path / ".out.partial" / "mtp.onnx").exists()
    write(tmp_path / "out")
    assert entries(tmp_path / "out") == ["decoder.onnx", "golden", MANIFEST]


KILLED = """
import sys, time
from pathlib import Path
from lensmith.runtimes.bundle.bundle_writer import BundleWriter
with BundleWriter(Path(sys.argv[1]), force=True) as bundle:
    with bundle.stage("v1", ["vision/a.onnx", "vision/a.data"]) as done:
        bundle.add("vision/a.onnx").write_text("v1")
        bundle.add("vision/a.data").write_text("data")
    bundle.add("decoder.onnx").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_between_stages(bundle: Path) -> None:
    import lensmith.runtimes.bundle.opening as module

    root = str(Path(module.__file__).absolute().parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(bundle)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert entries(bundle.parent) == [".out.partial", "out"]
    assert open_bundle(bundle, check="sha256").file("decoder.onnx").read_bytes() == b"graph"
    built: list[str] = []
    staged(bundle, ("v1", "d1"), built)
    assert built == ["decoder"]
    assert entries(bundle.parent) == ["out"]


@pytest.mark.parametrize("moves", range(9))
def test_stopped_while_a_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """Of a folder that must keep its place, as of `-o .`: the old bundle or the new one is whole, whenever it stops."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    write(out)
    before = {name: (out / name).read_bytes() for name in entries(out) if (out / name).is_file()}
    left = [moves]

    def rename(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        os.rename(self, target)
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        stopped: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if moves < 7:  # three entries go, their successors come, and the folder of the new ones is renamed between
            stopped = pytest.raises(KeyboardInterrupt)
        with stopped:
            staged(out, ("v1", "d1"), [])
    with pytest.raises(InputError, match="is a bundle already"):
        check_new_bundle(out)
    found = {name: (out / name).read_bytes() for name in entries(out) if (out / name).is_file()}
    assert open_bundle(out, check="sha256").file("decoder.onnx").read_bytes() == (b"graph" if moves < 4 else b"d1")
    assert (found == before) == (moves < 4)
    staged(out, ("v1", "d1"), [])
    assert entries(out) == ["decoder.onnx", MANIFEST, "vision"]


def fill_disk(bundle: BundleWriter, *, staged_before: bool) -> None:
    with bundle.stage("v1", ["a"]) if staged_before else contextlib.nullcontext():
        bundle.add("a").touch()
    with open("/dev/full", "wb") as file:
        file.write(bytes(100_000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("staged_before", [False, True])
def test_disk_full(bundle: Path, staged_before: bool) -> None:
    with pytest.raises(InputError, match=f"disk became full while {bundle} was being written") as caught:
        attempt(bundle, lambda writer: fill_disk(writer, staged_before=staged_before))
    assert "\n" not in str(caught.value)
    assert entries(bundle.parent) == ["out"]
    open_bundle(bundle, check="sha256")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError("Not enough free space to write 20000000 bytes after offset 0"), True),  # numpy
        (OSError("2000 requested and 1000 written"), True),  # numpy
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("2 requested and 1 written"), False),
        (None, False),
    ],
)
def test_is_disk_full(error: BaseException | None, full: bool) -> None:
    assert is_disk_full(error) == full


def test_room_is_asked_for_first(tmp_path: Path) -> None:
    require_space(tmp_path / "deep" / "out", 1)
    with pytest.raises(InputError, match="GB free; free some space"):
        require_space(tmp_path / "deep" / "out", 2**62)


def test_large_files_are_hashed_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their first bytes always, such as the header of a GGUF file."""
    for module in ("opening", "bundle_writer"):
        monkeypatch.setattr(f"lensmith.runtimes.bundle.{module}.HASHED_BYTES", 3)
    bundle = write(tmp_path / "large")
    open_bundle(bundle, check="sha256")
    (bundle / "decoder.onnx").write_bytes(b"Graph")
    with pytest.raises(InputError, match=r"decoder\.onnx was changed"):
        open_bundle(bundle)
    (bundle / "decoder.onnx").write_bytes(b"grapH")
    open_bundle(bundle)
    with pytest.raises(InputError, match=r"decoder\.onnx was changed"):
        open_bundle(bundle, check="sha256")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"decoder\.onnx was changed"):
        open_bundle(bundle)


def test_missing_and_cut_files(bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes(b"gra")
    with pytest.raises(InputError, match=r"decoder\.onnx has 3 bytes, expected 5"):
        open_bundle(bundle)
    (bundle / "decoder.onnx").unlink()
    with pytest.raises(InputError, match=r"lacks the file decoder\.onnx"):
        open_bundle(bundle)
    with pytest.raises(InputError, match="is not a bundle: it has no"):
        open_bundle(bundle.parent)


def test_links(bundle: Path) -> None:
    (bundle / "decoder.onnx").rename(bundle / "real")
    (bundle / "decoder.onnx").symlink_to("real")
    open_bundle(bundle)
    (bundle / "real").rename(bundle.parent / "outside.onnx")
    (bundle / "decoder.onnx").unlink()
    (bundle / "decoder.onnx").symlink_to(bundle.parent / "outside.onnx")
    with pytest.raises(InputError, match="leads out of the bundle through a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../out/decoder.onnx", "/etc/passwd", "a/../../x", "a\\..\\x", "C:/x", ""])
def test_manifest_that_leaves_the_folder(bundle: Path, name: str) -> None:
    change(bundle, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(InputError, match="should be a relative path inside the bundle"):
        open_bundle(bundle)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda m: m.update(format_version=2), "has format 2 and this lensmith reads up to 1; upgrade"),
    "no version": (lambda m: m.pop("format_version"), "missing required field `format_version`"),
    "version true": (lambda m: m.update(format_version=True), "format_version: expected `int`, got `bool`"),
    "no family": (lambda m: m.pop("family"), "missing required field `family`"),
    "files a list": (lambda m: m.update(files=[]), "files: expected `object`, got `array`"),
    "source": (lambda m: m.update(source={}), "source: object missing required field `name`"),
    "graph": (lambda m: m["graphs"].update(x=1), r"graphs\[...\]: expected `object`, got `int`"),
    "graph file": (lambda m: m["files"].pop("decoder.onnx"), "is in 'decoder.onnx', which is not one of its files"),
    "precision": (lambda m: m["precision"].update(w={"bits": 4}), r"precision\[...\]: object missing .* `group_size`"),
    "size": (lambda m: m["files"]["decoder.onnx"].update(size="5"), r"files\[...\].size: expected `int`, got `str`"),
    "hash": (lambda m: m["files"]["decoder.onnx"].update(sha256="0"), r"files\[...\].sha256: expected .* regex"),
    "unknown": (lambda m: m["limits"].update(ü=1), "limits has the field 'ü', which this lensmith does not know"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_manifest(bundle: Path, case: str) -> None:
    edit, message = BROKEN[case]
    change(bundle, edit)
    with pytest.raises(InputError, match=message) as caught:
        open_bundle(bundle)
    assert str(bundle / MANIFEST) in str(caught.value)


def test_manifest_not_json(bundle: Path) -> None:
    for text in ("{", "[1]", "\0", '{"a": NaN}', '{"a": "\\ud800"}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": 1e999}'):
        (bundle / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=MANIFEST):
            open_bundle(bundle)


def test_a_bad_manifest_is_not_written(bundle: Path) -> None:
    with pytest.raises(InputError, match="image: expected `object`, got `null`"):
        attempt(bundle, lambda writer: writer.add("decoder.onnx").touch(), CONTENT | {"image": None})
    assert check_manifest(open_bundle(bundle).content, "here")


def test_hash_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    record = hash_files([tmp_path / "a"])[tmp_path / "a"]
    assert record["size"] == 3
    assert record["sha256"].startswith("ba7816bf")
    with pytest.raises(InputError, match="cannot be read"):
        hash_file(tmp_path / "b")


def test_arrays_that_grow_when_they_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", a=np.zeros(8))
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros(1 << 20))
    assert read_arrays(tmp_path / "plain.npz")["a"].shape == (8,)
    with pytest.raises(ValueError, match="its arrays are compressed"):
        read_arrays(tmp_path / "packed.npz")


@pytest.mark.parametrize("name", ["decoder.onnx", "golden/0.json"])
def test_links_that_lead_to_themselves(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    (bundle / name).symlink_to(Path(name).name)
    with pytest.raises(InputError, match=Path(name).name):
        open_bundle(bundle)
