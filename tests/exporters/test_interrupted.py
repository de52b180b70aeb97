"""An export that is stopped leaves no bundle, continues when run again, and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.storage import weights
from lensmith.runtimes.storage.files import hash_file

# Slows the export down after the vision encoder, and says so.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it deaf to this signal
from lensmith.exporters.formats.onnx import onnx_files
from lensmith.exporters.storage import weights
write_graph, write_tensor = onnx_files._write_graph, weights._write_tensor

def graph(job, graph, *rest):
    if graph.name == "decoder":
        weights._write_tensor = tensor
    write_graph(job, graph, *rest)

def tensor(*arguments):
    hashes = write_tensor(*arguments)
    print("slow", flush=True)
    time.sleep(0.5)
    return hashes

onnx_files._write_graph = graph
from lensmith.cli import main
main(sys.argv[1:])
"""


def start(checkpoint: Path, out: Path) -> subprocess.Popen[str]:
    """Begin an export; returns when the vision encoder is done and the decoder is being written."""
    command = [sys.executable, "-c", SLOW, "export", str(checkpoint), "-o", str(out), "--golden", "never"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("slow"):
            return process
    raise AssertionError(process.communicate()[1])


def finish(checkpoint: Path, out: Path) -> None:
    command = [sys.executable, "-m", "lensmith.cli", "export", str(checkpoint), "-o", str(out),
               "--golden", "never"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def content(folder: Path) -> dict[str, object]:
    return {path.name: hash_file(path) for path in sorted(folder.iterdir())}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_interrupted_export_continues(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "bundle"
    process = start(tiny_checkpoint, out)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    assert not out.exists()
    half = out.with_name(".bundle.partial") / "vision_encoder.data"
    before = half.stat()
    finish(tiny_checkpoint, out)
    after = (out / "vision_encoder.data").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not written again
    assert content(out) == content(tiny_bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


class Counted:
    """Notes the tensors that are written, and interrupts behind a number of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.names: list[str] = []
        self.stop_after, self.write = stop_after, weights._write_tensor
        monkeypatch.setattr(weights, "_write_tensor", self)

    def __call__(self, placed: weights.Placed, *rest: Any) -> list[str]:
        if len(self.names) == self.stop_after:
            raise KeyboardInterrupt
        self.names.append(placed.tensor.name)
        return self.write(placed, *rest)


@pytest.mark.parametrize("damage", [None, "data", "journal"])
def test_export_continues_inside_a_graph(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    out, job = tmp_path / "bundle", prepare(tiny_checkpoint, Options())
    wanted = {source.name for graph in job.graphs for source in graph.sources}
    with monkeypatch.context() as patch:
        first = Counted(patch, stop_after=len(wanted) - 12)
        with pytest.raises(KeyboardInterrupt):
            export(job, out, golden="never")
    data = tmp_path / ".bundle.partial" / "decoder.data"
    if damage:
        path = data if damage == "data" else data.with_name("decoder.data.journal")
        content_before = bytearray(path.read_bytes())
        content_before[:2000] = bytes(2000)
        path.write_bytes(content_before)
    again = Counted(monkeypatch)
    export(prepare(tiny_checkpoint, Options()), out, golden="never")
    assert content(out) == content(tiny_bundle)
    if damage is None:
        assert not set(again.names) & set(first.names)
    assert set(again.names) | set(first.names) == wanted
