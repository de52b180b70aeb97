"""Engines that TensorRT-RTX builds without a GPU: for each family, for several chips, with weights that stay packed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters import export as pipeline
from lensmith.exporters.export import Options, export, prepare
from lensmith.exporters.trt import engines
from lensmith.exporters.trt.engines import run
from lensmith.exporters.trt.finish import build
from lensmith.exporters.trt.profiles import LOGITS, profiles
from lensmith.exporters.trt.worker import Request
from lensmith.runtimes.bundle import Bundle, open_bundle
from lensmith.runtimes.bundle_writer import BundleWriter
from lensmith.targets.errors import InputError, LensmithError
from lensmith.targets.profile import load_target

from tests import ladder
from tests.extras import Ran

trt = pytest.importorskip("tensorrt_rtx", reason="needs lensmith[tensorrt] (tensorrt-rtx)")

SYSTEMS = {"qwen3-vl-2b": "int4", "tarn-2b": "int4", "nemotron-4b": "int4", "vqwen3-4b": "int4",
           "arlow-vision": "int8"}  # fmt: skip
TYPES = {"FLOAT": "FLOAT", "BFLOAT16": "BF16", "INT64": "INT64", "INT32": "INT32"}  # of ONNX in TensorRT's words
INSPECTED = "1.7"  # the version whose engines' text is known


@pytest.fixture(scope="module", params=SYSTEMS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny one of each system, with engines for three chips."""
    folder = tmp_path_factory.mktemp("engines")
    name = request.param
    context = None if name == "arlow-vision" else 512
    options = Options(format="tensorrt", target="rtx", precision=SYSTEMS[name], group_size=32, context=context)
    return export(prepare(ladder.tiny(folder / "source", name), options), folder / "bundle", golden="auto")


def plan_lines(path: Path) -> list[str]:
    """The lines of an engine that describe its kernels."""
    lines = path.read_bytes().split(b"\n")
    return [line.decode("latin1") for line in lines if b"={ name=" in line and len(line) < 20_000]


def test_the_bundle_holds_engines_alone(bundle: Bundle) -> None:
    suffixes = {Path(name).suffix for name in bundle.manifest["files"]}
    assert ".engine" in suffixes
    assert not suffixes & {".onnx", ".data"}
    assert {graph["file"] for graph in bundle.manifest["graphs"].values()} <= set(bundle.manifest["files"])
    assert bundle.manifest["evidence"]["golden"]["reason"] == "engines run on their GPU alone"


def test_inputs_and_outputs_are_those_of_the_graphs(bundle: Bundle) -> None:
    for entry in bundle.manifest["graphs"].values():
        for side in ("inputs", "outputs"):
            expected = {name: {"dtype": TYPES[port["dtype"]], "shape": [n if isinstance(n, int) else -1
                        for n in port["shape"]]} for name, port in entry[side].items()}  # fmt: skip
            assert entry["engine"][side] == expected


def test_what_was_built_is_recorded(bundle: Bundle) -> None:
    for entry in bundle.manifest["graphs"].values():
        engine = entry["engine"]
        assert engine["capabilities"] == ["8.6", "8.9", "12.0"]
        assert engine["version"] == trt.__version__
        assert engine["warnings"] == []
        assert engine["sha256"] == bundle.manifest["files"][entry["file"]]["sha256"]
        assert engine["layers"]["BF16"] > 0
        assert engine["layers"].keys() & {"INT4", "INT8"}
        for shapes in engine["profiles"]:
            assert shapes.keys() == entry["inputs"].keys()


def test_the_engine_is_for_all_chips_and_its_weights_stay_packed(bundle: Bundle) -> None:
    if not trt.__version__.startswith(INSPECTED):
        pytest.skip(f"the text of engines is known for {INSPECTED}")
    for name, entry in bundle.manifest["graphs"].items():
        path = bundle.file(entry["file"])
        assert re.search(rb"accelerators=\{sm86 sm89 sm120 \}", path.read_bytes())
        separate = [line for line in plan_lines(path) if " function={" in line and "CastMulCast " in line]
        if name != "vision_encoder":  # the looked-up rows of the table are widened alone
            assert not [line for line in separate if "DequantizeLinear" in line and "Gath" not in line], name


def test_caches_are_written_where_they_lie(bundle: Bundle) -> None:
    """In the text of the engine past and present of a cache are one tensor."""
    graphs = bundle.manifest["graphs"]
    if "decoder" not in graphs or not trt.__version__.startswith(INSPECTED):
        pytest.skip("no cache")
    text = bundle.file(graphs["decoder"]["file"]).read_bytes()
    inputs = next(line for line in text.split(b"\n") if line.startswith(b"  inputs={") and b"input_ids" in line)
    caches = [name for name in graphs["decoder"]["outputs"] if name.endswith((".key", ".value"))]
    assert caches
    assert all(name.encode() in inputs for name in caches)


def test_two_layers_of_attention_beside_a_scan(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 ends its process on two fused attentions in a graph with a scan."""
    kinds = ["linear_attention", "full_attention"] * 2
    text = {"layer_types": kinds, "num_hidden_layers": 4, "mtp_num_hidden_layers": 0}
    source = ladder.variant(ladder.tiny(tmp_path / "tiny", "tarn-2b"), tmp_path / "source", {"text_config": text})
    options = Options(format="tensorrt", target="rtx-40", group_size=32, context=512)
    made = export(prepare(source, options), tmp_path / "bundle", golden="never")
    assert made.manifest["graphs"]["decoder"]["engine"]["warnings"] == []


def test_the_same_graph_gives_the_same_record(tmp_path: Path) -> None:
    """But for the hash: TensorRT numbers some parts of an engine in another order each time."""
    source = ladder.tiny(tmp_path / "source")
    options = Options(format="tensorrt", target="rtx-40", group_size=32, context=512)
    made = [export(prepare(source, options), tmp_path / name, golden="never") for name in ("one", "two")]
    records = [bundle.manifest["graphs"]["decoder"]["engine"] for bundle in made]
    assert {**records[0], "sha256": ""} == {**records[1], "sha256": ""}


def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export for a device that builds its engines itself."""
    gpu = load_target("rtx-40").gpu
    assert gpu is not None
    ladder.change_target(monkeypatch, gpu=replace(gpu, flavour="tensorrt"))


def test_building_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]) -> None:
    """The bundle carries its graphs, and `lensmith build` puts engines in their place."""
    on_the_device(monkeypatch)
    options = Options(format="tensorrt", target="rtx-40", group_size=32, context=512)
    source = ladder.tiny(tmp_path / "source")
    made = export(prepare(source, options), tmp_path / "bundle", golden="never")
    assert "decoder.onnx" in made.manifest["files"]
    ran = cli("build", made.path, "--json")
    assert ran.code == 0, ran.err
    finished = open_bundle(made.path, check="sha256")
    assert json.loads(ran.out)["files"].keys() == finished.manifest["files"].keys()
    assert "decoder.engine" in finished.manifest["files"]
    assert "decoder.onnx" not in finished.manifest["files"]
    again = cli("build", made.path)
    assert again.code == 2
    assert "has its engines" in again.err


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, built = ladder.tiny(tmp_path / "source"), []
    job = prepare(source, Options(format="tensorrt", target="rtx-40", group_size=32, context=512))

    def once(request: Request, progress: Any) -> dict[str, Any]:
        built.append(Path(request.engine).stem)
        if built == ["vision_encoder", "decoder"]:
            raise KeyboardInterrupt
        return run(request, progress)

    monkeypatch.setattr(engines, "run", once)
    with pytest.raises(KeyboardInterrupt):
        export(job, tmp_path / "bundle", golden="never")
    export(prepare(source, job.options), tmp_path / "bundle", golden="never")
    assert built == ["vision_encoder", "decoder", "decoder"]
    assert not list(tmp_path.glob(".*.partial"))


def test_failures_have_words(tmp_path: Path) -> None:
    """A file that is no graph; a process that ends before its time."""
    (tmp_path / "graph.onnx").write_bytes(b"nothing")
    request = Request("tensorrt_rtx", str(tmp_path / "graph.onnx"), str(tmp_path / "graph.engine"), [], ["8.9"])
    with pytest.raises(LensmithError, match=r"cannot build graph\.onnx: the parser refuses it"):
        run(request)
    with pytest.raises(LensmithError, match=r"cannot build graph\.onnx"):
        run(replace(request, flavour="no_such_flavour"))


def test_bundles_that_cannot_be_built(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="--format tensorrt"):
        build(tiny_bundle)


def test_profiles_follow_the_limits() -> None:
    manifest = {"options": {"prefill_chunk": 1024}, "limits": {"context": 600, "max_image_tokens": 9000,
                "max_pixels": 512 * 512}, "image": {"patch_size": 16, "merge_size": 2}}  # fmt: skip
    ports = {"input_ids": {"shape": [1, "seq"]}, "logit_positions": {"shape": ["num_logits"]}}
    prompts, tokens = profiles("decoder", ports, manifest)
    assert prompts == {"input_ids": [[1, 1], [1, 300], [1, 600]], "logit_positions": [[1], [1], [LOGITS]]}
    assert tokens == {"input_ids": [[1, 1]] * 3, "logit_positions": [[1]] * 3}
    images = profiles("vision_encoder", {"pixel_values": {"shape": ["patches", 1536]}}, manifest)
    assert images == [{"pixel_values": [[4, 1536], [1024, 1536], [1024, 1536]]}]


def test_the_writer_leaves_out_what_became_something_else(tmp_path: Path, tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    graphs = {"vision_encoder": {"file": "a", "inputs": {}, "outputs": {}}}
    with BundleWriter(tmp_path / "out") as writer:
        with writer.stage("key", ["a", "b"]):
            for name in ("a", "b"):
                writer.add(name).write_text(name)
        writer.leave_out(["b"])
        writer.close({**manifest, "graphs": graphs})
    assert set(open_bundle(tmp_path / "out").manifest["files"]) == {"a"}
    assert pipeline.find_lowering("tensorrt").no_replay is not None
