"""Where PyTorch takes no part in an export, `verify` replays what the bundle itself gave; weights are compared too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from lensmith.exporters.evidence import golden, own_traces
from lensmith.exporters.evidence.proof import prove_weights
from lensmith.exporters.evidence.self_replay import Way, replayed
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning import golden_sizes
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.runtimes.evidence import verification as verifying
from lensmith.runtimes.evidence.built import read_built
from lensmith.runtimes.evidence.traces import OWN, Traces, read_traces
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.generation.loading import load
from lensmith.runtimes.generation.model import Model
from lensmith.targets.errors import CheckFailed

from tests.exporters.families.test_text_only import plain, text_model
from tests.helpers.arlow import CHECKPOINT
from tests.paths import TINY
from tests.runtimes.evidence.test_verify_on_device import add, edit, move, scale

GGUF: dict[str, Any] = {"format": "gguf", "precision": "q4_0"}


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is too large for PyTorch."""
    monkeypatch.setattr(golden, "AUTO_BYTES", 0)
    monkeypatch.setattr(golden_sizes, "AUTO_BYTES", 0)


def build(source: Path, out: Path, **options: Any) -> Path:
    return export(prepare(source, Options(**options)), out).path


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "AUTO_BYTES", 0)
        return build(TINY / "qwen3_5", tmp_path_factory.mktemp("own") / "bundle")


@pytest.mark.parametrize(
    ("name", "options"),
    [("qwen3_vl", {"precision": "fp32"}), ("qwen3_vl", GGUF), ("text", {}), ("arlow", {"precision": "int8"})],
)
def test_fresh_bundles_pass_here_and_elsewhere(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"arlow": CHECKPOINT, "text": tmp_path / "text"}
    source = places.get(name, TINY / name)
    if name == "text":
        text_model(source, plain)
    bundle = build(source, tmp_path / "bundle", **options)
    report = verify(bundle)
    assert report.passed, report.summary()
    assert report.summary().startswith("bundle agrees with itself as it was built: ")
    assert report.reference == OWN
    opened = open_bundle(bundle)
    assert {*read_built(opened).spread} == {*opened.content["graphs"]}
    assert all(0 < value.overall <= value.row < 0.1 for value in read_built(opened).spread.values())
    monkeypatch.setattr(verifying, "arithmetic", lambda *_, **how: None)
    for native in (None, False):
        report = verify(bundle, native=native, threads=1)
        assert report.passed, report.summary()
        assert any(row.limit and row.limit > 0 for row in report.rows if row.figure.endswith("_change"))


def test_what_is_recorded_is_what_the_bundle_gives(int4: Path) -> None:
    traces = read_traces(open_bundle(int4))
    case = traces.cases[0]
    model = load(int4, threads=None)
    assert isinstance(model, Model)
    for image in traces.images:
        features = model.vision(*model.media.cut(int4 / image.file, max_pixels=image.max_pixels))
        np.testing.assert_array_equal(features.features, image.features.features)
    assert [len(image.features) for image in traces.images] == [12, 240]  # asked about, and of the usual size
    asked = [{**case.messages[0], "content": [
        {**b, "image": int4 / b["image"]} if b["type"] == "image" else b for b in case.messages[0]["content"]
    ]}]  # fmt: skip
    request = model.prepare(asked)
    assert [int(token) for token in request.prompt.ids] == case.token_ids
    np.testing.assert_allclose(model.prefill(request)[-1], case.logits, rtol=1e-5, atol=1e-5)
    assert case.answer == case.token_ids[:4]
    assert case.tops.ids.shape == (4, 16)
    assert len({tuple(row) for row in case.tops.ids}) > 1  # each step has its own
    assert case.tops.ids[0, 0] == case.logits.argmax()
    spread = read_built(open_bundle(int4)).spread
    assert all(value.row > 0 for value in spread.values())
    assert spread.keys() == {"vision_encoder", "decoder", "mtp"}


@pytest.mark.parametrize(
    ("graph", "ending", "change", "known"),
    [
        ("decoder", "mlp.down_proj.weight.values", move(1), True),
        ("decoder", "mlp.down_proj.weight.scales", scale(1.2), False),
        ("vision_encoder", "merger.linear_fc2.bias", add(0.3), False),
    ],
)
def test_wrong_devices_fail(
    int4: Path, graph: str, ending: str, change: Any, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(int4, tmp_path / "copy"))
    edit(copy, graph, ending, change)
    if not known:
        monkeypatch.setattr(verifying, "arithmetic", lambda *_, **how: None)
    report = verify(copy)
    assert any(not row.passed and row.output.startswith(graph) for row in report.rows)


def test_short_contexts_have_the_short_conversation(tmp_path: Path) -> None:
    bundle = build(TINY / "llava", tmp_path / "bundle", context=60)
    assert [case.name for case in read_traces(open_bundle(bundle)).cases] == ["text only"]
    assert verify(bundle).passed


def test_long_pictures_are_asked_about_and_noise_is_that_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that brings all pictures to one size has many tokens of each."""
    monkeypatch.setattr(own_traces, "FEW", 8)
    monkeypatch.setattr(golden_sizes, "FEW", 8)
    asked = dict[str, int]()

    def noted(bundle: Bundle, traces: Traces, way: Way) -> Any:
        asked.update({case.name: len(traces.images) for case in traces.cases})
        assert way.noise == 2.0**-14
        return replayed(bundle, traces, way)

    monkeypatch.setattr(own_traces, "replayed", noted)
    job = prepare(TINY / "llava", Options())
    bundle = export(job, tmp_path / "bundle")
    traces = read_traces(bundle)
    assert [case.name for case in traces.cases] == ["one image", "text only"]
    assert [image.max_pixels for image in traces.images] == [None]
    assert not np.array_equal(traces.cases[0].logits, traces.cases[1].logits)
    assert asked == {"text only": 1}
    assert verify(bundle.path).passed
    found = sum(file.stat().st_size for file in (bundle.path / "golden").iterdir())
    assert make_plan(job).golden_bytes == pytest.approx(found, rel=0.12)


def test_pictures_have_no_more_pixels_than_a_bundle_takes(tmp_path: Path) -> None:
    bundle = build(TINY / "qwen3_vl", tmp_path / "bundle", max_pixels=16 * 16 * 6)
    small, usual = read_traces(open_bundle(bundle)).images
    assert small.max_pixels == 16 * 16 * 6
    assert len(small.features) <= 6
    assert small.patches_sha256 != usual.patches_sha256
    assert verify(bundle).passed


def test_large_bundles_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_traces, "LARGEST", 1000)
    bundle = open_bundle(build(TINY / "llava", tmp_path / "bundle"))
    assert not bundle.content["evidence"]["golden"]["recorded"]
    assert "are not loaded beside the export" in bundle.content["evidence"]["golden"]["reason"]
    assert not (bundle.path / "golden").exists()


@pytest.mark.parametrize("options", [{}, GGUF])
def test_plans_know_the_size(options: dict[str, Any], tmp_path: Path) -> None:
    job = prepare(TINY / "qwen3_5", Options(**options))
    bundle = export(job, tmp_path / "bundle")
    found = sum(file.stat().st_size for file in (bundle.path / "golden").iterdir())
    assert make_plan(job).golden_bytes == pytest.approx(found, rel=0.12)


@pytest.mark.parametrize("precision", ["f16", "q4_0"])
def test_weights_of_gguf_files_are_compared(precision: str, tmp_path: Path) -> None:
    job = prepare(TINY / "qwen3_5", Options(format="gguf", precision=precision))
    folder = export(job, tmp_path / "bundle", golden="never").path
    prove_weights(job, folder)
    name, *_ = (t.name for t in gguf.GGUFReader(folder / "model.gguf").tensors if "ffn_up" in t.name)
    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    data: Any = next(tensor for tensor in reader.tensors if tensor.name == name).data
    data[[0, 1]] = data[[1, 0]]
    data.flush()
    with pytest.raises(CheckFailed, match=f"model.gguf are not the checkpoint's: {name} is off"):
        prove_weights(job, folder)
