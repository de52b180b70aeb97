"""What an engine's text says of its kernels, and where that is shown."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.formats.tensorrt import engine_files as engines
from lensmith.exporters.formats.tensorrt import engine_worker as worker
from lensmith.exporters.formats.tensorrt.engine_worker import BuildRequest
from lensmith.exporters.formats.tensorrt.kernels import read_kernels
from lensmith.runtimes.bundle.bundle_writer import BundleWriter
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.targets.profile import load_target

from tests.helpers.extras import Ran

# As TensorRT-RTX 1.7 writes it, between bytes of weights.
TEXT = b"""\x00\xff\x8a
  stream_capturable=1
  accelerators={sm86 sm120 }
      function={ name=__myl_Cast input_args={ "x.1" } layers="[ONNX Layer: x]" }
      runtime_fusion={ name=_Fc input_args={ "1_dconst" "x" } layers="[ONNX Layer: DequantizeLinear][ONNX Layer: a]" }
      function={ name=__myl_CastMul input_args={ "2_dconst" } layers="[ONNX Layer: b/DequantizeLinear_node_3]" }
      function={ name=_T input_args={ "5_const-lit-in" } layers="[ONNX Layer: c/DequantizeLinear]\x1f[ONNX Layer: c]" }
      function={ name=__myl_Gath input_args={ "ids.1" } layers="[ONNX Layer: t]\x1f[ONNX Layer: t/DequantizeLinear]" }
      fully_connected={ name="b/Gemm" output={"y.1" } input={"x.1" } layers="[ONNX Layer: b]" }
  accelerators={*}
\x00\xfe"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "made.engine").write_bytes(TEXT)
    return tmp_path / "made.engine"


def test_kernels_are_counted(engine: Path) -> None:
    assert read_kernels(engine, "tensorrt_rtx", "1.7.1.116") == {
        "capabilities": ["8.6", "12.0"],
        "kernels": 5,
        "fused": 2,
        "recordable": True,
        "written_out": ["b/DequantizeLinear_node_3", "c/DequantizeLinear"],
    }


def test_a_scan_cannot_be_recorded(engine: Path) -> None:
    engine.write_bytes(TEXT + b"\n  stream_capturable=0\n")
    found = read_kernels(engine, "tensorrt_rtx", "1.7.1.116")
    assert found is not None
    assert not found["recordable"]


@pytest.mark.parametrize(("flavour", "version"), [("tensorrt", "1.7.1"), ("tensorrt_rtx", "1.8.0")])
def test_other_versions_have_another_text(engine: Path, flavour: str, version: str) -> None:
    assert read_kernels(engine, flavour, version) is None


def test_an_engine_for_other_chips_is_refused(engine: Path) -> None:
    class Library:
        __version__ = "1.7.1"

    request = BuildRequest("tensorrt_rtx", "", str(engine), [], ["8.6", "8.9"])
    with pytest.raises(ValueError, match=r"compiled for \['8\.6', '12\.0'\] instead of \['8\.6', '8\.9'\]"):
        worker._kernels(Library(), request)


@pytest.fixture
def shown(tiny_bundle: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """A bundle as if TensorRT had built it, with the text above for an engine."""
    opened, gpu = open_bundle(tiny_bundle), load_target("rtx-40").gpu
    assert gpu is not None

    def built(request: BuildRequest, progress: Any) -> dict[str, Any]:
        shutil.copy(engine, request.engine)
        return {"flavour": "tensorrt_rtx", "version": "1.7.1", "capabilities": ["8.6", "12.0"], "layers": {"BF16": 3},
                "profiles": [{"input_ids": [[1], [1], [1]]}],
                "kernels": read_kernels(engine, "tensorrt_rtx", "1.7.1"), "seconds": 1.5,
                "peak_memory_bytes": 5}  # fmt: skip

    class Library:
        __version__ = "1.7.1"

    monkeypatch.setattr(engines, "run", built)
    monkeypatch.setattr(engines, "profiles", lambda *_: [])
    monkeypatch.setattr(engines, "load_library", lambda flavour: Library())
    with caplog.at_level(logging.WARNING), BundleWriter(engine.parent / "bundle") as writer:
        graphs = engines.build_engines(opened.content, opened.path, writer, gpu, "key", lambda *_: None)
        for name in ("tokenizer.json", "chat_template.jinja"):
            shutil.copy(opened.path / name, writer.add(name))
        options = {**opened.content["options"], "format": "tensorrt"}
        for graph in graphs.values():
            sizes = {
                name: [[n if isinstance(n, int) else 1 for n in port["shape"]]] * 3
                for name, port in graph["inputs"].items()
            }
            graph |= {"dialect": "tensorrt", "engine": {**graph["engine"], "profiles": [sizes]}}
        writer.close({**opened.content, "graphs": graphs, "options": options})
    assert caplog.text.count("writes out the weights of 2 layers") == len(graphs)
    return engine.parent / "bundle"


def test_inspect_shows_engines(shown: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = cli("inspect", shown)
    assert ran.code == 0, ran.err
    assert "tensorrt_rtx 1.7.1" in ran.out
    assert "8.6, 12.0" in ran.out
    assert "3 BF16" in ran.out
    made = json.loads(cli("inspect", shown, "--json").out)["graphs"]["decoder"]["engine"]
    assert made["kernels"]["written_out"] == ["b/DequantizeLinear_node_3", "c/DequantizeLinear"]
    assert not {"seconds", "peak_memory_bytes"} & made.keys()


def test_inspect_without_engines(tiny_bundle: Path, cli: Callable[..., Ran]) -> None:
    assert "Engines" not in cli("inspect", tiny_bundle).out
