"""Engines that TensorRT-RTX builds without a GPU: for each family, for several chips, with weights that stay packed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.formats.tensorrt import engine_files as engines
from lensmith.exporters.formats.tensorrt import engine_worker as worker
from lensmith.exporters.formats.tensorrt.engine_files import run
from lensmith.exporters.formats.tensorrt.engine_worker import BuildRequest
from lensmith.exporters.formats.tensorrt.kernels import KERNEL
from lensmith.exporters.formats.tensorrt.profiles import profiles
from lensmith.exporters.formats.tensorrt.spelled_out import spell_out
from lensmith.exporters.formats.tensorrt.tensorrt_dialect import TensorRTDialect
from lensmith.exporters.formats.tensorrt.tensorrt_weights import QdqMatrix
from lensmith.exporters.graphs.blocks import Linear, sources
from lensmith.exporters.graphs.graph_files import Graph, _builder, _graph
from lensmith.exporters.graphs.graph_ports import (
    F32,
    I64,
    add_input,
    add_output,
)
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.storage.scheme import Scheme
from lensmith.exporters.storage.weights import in_file
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.targets.errors import LensmithError
from lensmith.targets.profile import load_target

from tests.helpers import ladder
from tests.helpers.extras import Ran

trt = pytest.importorskip("tensorrt_rtx", reason="needs lensmith[tensorrt-rtx]")

SYSTEMS = {"qwen3-vl-2b": "int4", "tarn-2b": "int4", "nemotron-4b": "int4", "vqwen3-4b": "int4",
           "qwen2.5-vl-3b": "int4", "arlow-vision": "int8"}  # fmt: skip
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


def test_the_bundle_holds_engines_alone(bundle: Bundle) -> None:
    suffixes = {Path(name).suffix for name in bundle.content["files"]}
    assert ".engine" in suffixes
    assert not suffixes & {".onnx", ".data"}
    assert {graph["file"] for graph in bundle.content["graphs"].values()} <= set(bundle.content["files"])
    assert bundle.content["evidence"]["golden"]["reason"] == "engines run on their GPU alone"


def test_inputs_and_outputs_are_those_of_the_graphs(bundle: Bundle) -> None:
    for entry in bundle.content["graphs"].values():
        for side in ("inputs", "outputs"):
            expected = {name: {"dtype": TYPES[port["dtype"]], "shape": [n if isinstance(n, int) else -1
                        for n in port["shape"]]} for name, port in entry[side].items()}  # fmt: skip
            assert entry["engine"][side] == expected


def test_what_was_built_is_recorded(bundle: Bundle) -> None:
    for entry in bundle.content["graphs"].values():
        engine = entry["engine"]
        assert engine["capabilities"] == ["8.6", "8.9", "12.0"]
        assert engine["version"] == trt.__version__
        assert engine["warnings"] == []
        assert engine["sha256"] == bundle.content["files"][entry["file"]]["sha256"]
        assert engine["layers"]["BF16"] > 0
        assert engine["layers"].keys() & {"INT4", "INT8"}
        for shapes in engine["profiles"]:
            assert shapes.keys() == entry["inputs"].keys()


def test_the_engine_is_for_all_chips_and_its_weights_stay_packed(bundle: Bundle) -> None:
    if not trt.__version__.startswith(INSPECTED):
        pytest.skip(f"the text of engines is known for {INSPECTED}")
    for entry in bundle.content["graphs"].values():
        kernels = entry["engine"]["kernels"]
        assert kernels["capabilities"] == ["8.6", "8.9", "12.0"]
        assert kernels["written_out"] == []
        assert kernels["kernels"] > kernels["fused"] > 0
    recordable = {name: entry["engine"]["kernels"]["recordable"] for name, entry in bundle.content["graphs"].items()}
    linear = bundle.content["family"] == "qwen3_5"
    assert recordable == {**dict.fromkeys(recordable, True), **({"decoder": False} if linear else {})}


def test_caches_are_written_where_they_lie(bundle: Bundle) -> None:
    """In the text of the engine past and present of a cache are one tensor."""
    graphs = bundle.content["graphs"]
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
    assert made.content["graphs"]["decoder"]["engine"]["warnings"] == []


def test_the_same_graph_gives_the_same_record(tmp_path: Path) -> None:
    """But for the hash: now and then TensorRT writes a few records in another order (7 bytes of 15 MB)."""
    source = ladder.tiny(tmp_path / "source")
    options = Options(format="tensorrt", target="rtx-40", group_size=32, context=512)
    made = [export(prepare(source, options), tmp_path / name, golden="never") for name in ("one", "two")]
    records = [bundle.content["graphs"]["decoder"]["engine"] for bundle in made]
    assert {**records[0], "sha256": ""} == {**records[1], "sha256": ""}


@pytest.mark.parametrize(("target", "precision", "kind"), [("t4", "fp16", "HALF"), ("dgx-spark", "int4", "INT4")])
def test_chips_with_engines_of_their_own(target: str, precision: str, kind: str, tmp_path: Path) -> None:
    options = Options(format="tensorrt", target=target, precision=precision, group_size=32, context=512)
    made = export(prepare(ladder.tiny(tmp_path / "source"), options), tmp_path / "bundle", golden="never")
    for entry in made.content["graphs"].values():
        assert entry["engine"]["capabilities"] == list(load_target(target).gpu.capabilities)  # type: ignore[union-attr]
        assert entry["engine"]["layers"][kind] > 5
        assert entry["engine"]["kernels"]["written_out"] == []


@pytest.mark.parametrize("target", ["rtx-40", "rtx-50"])
def test_floats_of_8_bits(target: str, tmp_path: Path) -> None:
    """Of every matrix, for the chips that have them, in both kinds of decoder layers."""
    source = ladder.tiny(tmp_path / "source", "tarn-2b")
    options = Options(format="tensorrt", target=target, precision="fp8", context=512)
    made = export(prepare(source, options), tmp_path / "bundle", golden="never")
    for entry in made.content["graphs"].values():
        assert entry["engine"]["layers"]["FP8"] > 5
        assert not entry["engine"]["layers"].keys() & {"INT8", "INT4"}
        assert entry["engine"]["kernels"]["written_out"] == []
        assert entry["engine"]["warnings"] == []


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
    assert "decoder.onnx" in made.content["files"]
    ran = cli("build", made.path, "--json")
    assert ran.code == 0, ran.err
    finished = open_bundle(made.path, check="sha256")
    assert json.loads(ran.out)["files"].keys() == finished.content["files"].keys()
    assert "decoder.engine" in finished.content["files"]
    assert "decoder.onnx" not in finished.content["files"]
    again = cli("build", made.path)
    assert again.code == 2
    assert "has its engines" in again.err


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, built = ladder.tiny(tmp_path / "source"), []
    job = prepare(source, Options(format="tensorrt", target="rtx-40", group_size=32, context=512))

    def once(request: BuildRequest, progress: Any) -> dict[str, Any]:
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
    request = BuildRequest("tensorrt_rtx", str(tmp_path / "graph.onnx"), str(tmp_path / "graph.engine"), [], ["8.9"])
    with pytest.raises(LensmithError, match=r"cannot build graph\.onnx: the parser refuses it"):
        run(request)
    with pytest.raises(LensmithError, match=r"cannot build graph\.onnx"):
        run(replace(request, flavour="no_such_flavour"))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle for a device that builds its engines itself."""
    with pytest.MonkeyPatch.context() as patch:
        on_the_device(patch)
        folder = tmp_path_factory.mktemp("graphs")
        options = Options(format="tensorrt", target="rtx-40", group_size=32, context=512)
        return export(prepare(ladder.tiny(folder / "source"), options), folder / "bundle", golden="never")


def request_of(graphs: Bundle, out: Path, path: Path | None = None) -> BuildRequest:
    """To build the decoder for one chip."""
    entry = graphs.content["graphs"]["decoder"]
    shapes = profiles("decoder", entry["inputs"], graphs.content)
    return BuildRequest("tensorrt_rtx", str(path or graphs.graph("decoder")), str(out), shapes, ["8.9"])


def test_attention_that_the_parser_does_not_know(graphs: Bundle, tmp_path: Path) -> None:
    """Its body is taken, and becomes the same kernels."""
    made = run(request_of(graphs, tmp_path / "made.engine", spell_out(graphs.graph("decoder"))))
    assert made["warnings"] == []
    assert {b"_gemm_mha_v2", b"_gemv_mha_v1"} <= names_of_kernels(tmp_path / "made.engine")
    assert not {"TRT_Attention"} & operators(graphs.path / "decoder-spelled-out.onnx")
    assert {"TRT_Attention"} & operators(graphs.graph("decoder"))


def test_the_parser_is_asked_for_its_attention(graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Parser(trt.OnnxParser):  # type: ignore[misc, name-defined]
        def supports_operator(self, name: str) -> bool:
            return name not in ("TRT_Attention", "Swish")

    asked: list[Path] = []

    def other(path: Path) -> Path:
        asked.append(path)
        return tmp_path / "nothing.onnx"

    monkeypatch.setattr(trt, "OnnxParser", Parser)
    monkeypatch.setattr(worker, "spell_out", other)
    with pytest.raises(ValueError, match=r"refuses it.*does not know Swish: install a newer one"):
        worker.build(request_of(graphs, tmp_path / "made.engine"))
    assert asked == [graphs.graph("decoder")]


def test_a_library_without_streams_and_monitors(
    graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What plain TensorRT of some devices lacks."""
    for name in ("IStreamWriter", "IProgressMonitor", "ComputeCapability"):
        monkeypatch.delattr(trt, name)
    request = replace(request_of(graphs, tmp_path / "made.engine"), capabilities=[])
    monkeypatch.setattr(worker, "_kernels", lambda *_: None)
    made = worker.build(request)
    assert made["sha256"] == hashlib.sha256((tmp_path / "made.engine").read_bytes()).hexdigest()


def names_of_kernels(path: Path) -> set[bytes]:
    return {found for line in KERNEL.findall(path.read_bytes()) for found in re.findall(rb"name=(\S+)", line)}


def operators(path: Path) -> set[str]:
    return {node.op_type for node in ir.load(path).graph}


COLUMNS, ROWS = 1024, 2048  # at which single tokens have products, too, and not sums
WEIGHTS = {"int4": Scheme(4, 64), "int8": Scheme(8, COLUMNS), "fp8": Scheme(8, COLUMNS, float8=True)}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("bias", [False, True])
def test_products_widen_their_weights_themselves(name: str, bias: bool, tmp_path: Path) -> None:
    made = build_product(TensorRTDialect("bfloat16", 512), WEIGHTS[name], tmp_path, bias=bias)
    assert made["kernels"]["capabilities"] == ["8.9", "12.0"]
    assert made["kernels"]["fused"] == 2  # one for each profile
    assert made["kernels"]["written_out"] == []
    assert (tmp_path / "product.engine").stat().st_size < 1.2 * ROWS * COLUMNS * WEIGHTS[name].bits // 8 + 1_000_000


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_table_and_its_head_are_stored_once(name: str, tmp_path: Path) -> None:
    dialect = TensorRTDialect("bfloat16", 512)
    table = dialect.table(8 * ROWS, COLUMNS, WEIGHTS[name], shared=True)
    table._set_name("table")
    ids = add_input("ids", I64, [1, "seq"])
    builder = _builder("product", [ids], dialect.opsets)
    logits = dialect.matmul(builder.op, dialect.gather_rows(builder.op, ids, table), table.weight, None)
    add_output(builder, dialect.leave(builder.op, logits), "y", F32, [1, "seq", 8 * ROWS])
    graph = _graph(builder, tuple(sources(table, "table")))
    made = build_graph(graph, tmp_path, "ids", [])
    assert made["kernels"]["written_out"] == []
    packed = 8 * ROWS * COLUMNS * WEIGHTS[name].bits // 8
    assert packed < (tmp_path / "product.engine").stat().st_size < 1.2 * packed + 500_000


def test_weights_that_are_written_out_are_named(tmp_path: Path) -> None:
    """One scale for each row: fused for prompts and not for single tokens."""

    class Rows(QdqMatrix):
        def forward(self, op: Any, *, widen: bool = True) -> dict[str, Any]:
            return {"values": op.DequantizeLinear(self.values, self.factors, axis=0)}

    class ByRow(TensorRTDialect):
        def matrix(self, rows: int, columns: int, scheme: Scheme) -> Rows:
            return Rows(rows, columns, scheme, self.dtype)

    made = build_product(ByRow("bfloat16", 512), WEIGHTS["int8"], tmp_path)
    assert made["kernels"]["fused"] == 1
    assert [name for name in made["kernels"]["written_out"] if "DequantizeLinear" in name]


def build_product(dialect: TensorRTDialect, scheme: Scheme, folder: Path, *, bias: bool = False) -> dict[str, Any]:
    """An engine of one linear layer, for prompts of up to 512 tokens and for single ones."""
    layer = Linear(dialect, COLUMNS, ROWS, scheme, bias=bias)
    layer._set_name("layer")
    x = add_input("x", F32, [1, "seq", COLUMNS])
    builder = _builder("product", [x], dialect.opsets)
    y = dialect.leave(builder.op, layer(builder.op, dialect.enter(builder.op, x)))
    add_output(builder, y, "y", F32, [1, "seq", ROWS])
    return build_graph(_graph(builder, tuple(sources(layer, "layer"))), folder, "x", [COLUMNS])


def build_graph(graph: Graph, folder: Path, port: str, sizes: list[int]) -> dict[str, Any]:
    """An engine of a graph with random weights and an input [1, seq, *sizes]."""
    draw = np.random.default_rng(0)
    with open(folder / "product.data", "wb") as file:
        for source in graph.sources:
            matrix = source.matrix
            shape = (ROWS,) if matrix is None else (matrix.rows, matrix.columns)
            parts = source.pack(draw.standard_normal(shape).astype(np.float32))
            for parameter, part in zip(source.parameters, parts, strict=True):
                parameter.const_value = in_file(parameter, "product.data", file.tell())
                file.write(part.tobytes())
    ir.save(graph.model, folder / "product.onnx")
    shapes = [{port: [[1, seq, *sizes] for seq in lengths]} for lengths in ((1, 256, 512), (1, 1, 1))]
    request = BuildRequest(
        "tensorrt_rtx", str(folder / "product.onnx"), str(folder / "product.engine"), shapes, ["8.9", "12.0"]
    )
    return run(request)
