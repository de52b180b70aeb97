"""Golden traces: recorded in the bundle, replayed without PyTorch, and they name what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.evidence import golden as module
from lensmith.exporters.evidence.golden import Golden
from lensmith.exporters.graphs.matrices import Matrix
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import MANIFEST, open_bundle
from lensmith.runtimes.evidence.traces import ARRAYS, CASES, read_traces
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.storage.files import dump_json
from lensmith.targets.errors import CheckFailed, InputError, MissingExtra

from tests.helpers import ladder
from tests.helpers.sealing import seal, seal_as_built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ladder.tiny(tmp_path_factory.mktemp("verify") / "tiny")


def build(source: Path, out: Path, golden: Golden = "always", **options: Any) -> Path:
    ladder.need_torch()
    return export(prepare(source, Options(**options)), out, golden=golden).path


@pytest.fixture(scope="module")
def exact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("exact") / "bundle", precision="fp32")


@pytest.fixture
def copy(exact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exact, tmp_path / "copy"))


def disturb(bundle: Path, graph: str, weight: str) -> None:
    """Make all values of one weight of a graph a fifth larger."""
    tensor = ir.load(bundle / f"{graph}.onnx").graph.initializers[weight].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    values = np.memmap(bundle / f"{graph}.data", np.float32, "r+", tensor.offset or 0, tuple(tensor.shape.numpy()))
    values *= 1.2
    values.flush()
    seal_as_built(bundle)


def first_output(bundle: Path) -> str:
    report = verify(bundle)
    assert not report.passed
    assert report.first_divergence is not None
    assert report.first_divergence.output in report.summary()
    assert json.loads(dump_json(report.to_json()))["passed"] is False
    return report.first_divergence.output


def test_a_fresh_bundle_passes(exact: Path) -> None:
    report = verify(exact)
    assert report.passed, report.summary()
    assert report.exact
    assert "float32" in report.reference
    assert json.loads(dump_json(report.to_json()))["first_divergence"] is None
    outputs = {row.output for row in report.rows}
    assert {"token ids", "vision_encoder: deepstack_features[2]", "vision_encoder: image_features"} <= outputs


def test_the_manifest_has_the_figures_of_the_first_replay(exact: Path) -> None:
    evidence = open_bundle(exact).content["evidence"]["golden"]
    assert evidence["recorded"]
    assert evidence["cases"] == ["text only", "one image", "three images", "two turns", "image and video"]
    figures = evidence["figures"]
    assert figures["greedy_agreement"] == figures["top1_agreement"] == 1
    assert 0 < figures["logits_error"] < 1e-4
    assert 0 < figures["image_features_error"] < 1e-4


def test_the_same_inputs_give_the_same_bytes(exact: Path, source: Path, tmp_path: Path) -> None:
    again = build(source, tmp_path / "again", precision="fp32")
    assert (again / MANIFEST).read_bytes() == (exact / MANIFEST).read_bytes()  # which has the hash of each file


def test_a_changed_byte_is_refused(copy: Path) -> None:
    data = bytearray((copy / "decoder.data").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "decoder.data").write_bytes(data)
    with pytest.raises(InputError, match=r"decoder\.data was changed"):
        verify(copy)


@pytest.mark.parametrize(
    ("graph", "weight", "output"),
    [
        ("vision_encoder", "deepstack_merger_list.1.linear_fc1.weight.values", "vision_encoder: deepstack_features[1]"),
        ("vision_encoder", "merger.linear_fc2.weight.values", "vision_encoder: image_features"),
        ("decoder", "layers.2.self_attn.k_norm.weight", "decoder: logits at step 0"),
    ],
)
def test_a_wrong_weight_is_found_and_its_output_named(copy: Path, graph: str, weight: str, output: str) -> None:
    disturb(copy, graph, weight)
    assert first_output(copy) == output


def edit_arrays(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    arrays = dict(np.load(bundle / ARRAYS))
    change(arrays)
    with open(bundle / ARRAYS, "wb") as file:
        np.savez(file, **arrays)
    seal(bundle)


def test_the_first_step_that_differs_is_named(copy: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["one image.top_logits"][5:] += np.float32(0.1)

    edit_arrays(copy, change)
    assert first_output(copy) == "decoder: logits at step 5"


def test_other_prompts_and_patches_are_named(copy: Path) -> None:
    cases = json.loads((copy / CASES).read_text())
    cases["cases"][0]["token_ids"][1] += 1
    (copy / CASES).write_text(dump_json(cases))
    seal(copy)
    assert first_output(copy) == "token ids"
    cases["images"][0]["patches_sha256"] = "0" * 64
    (copy / CASES).write_text(dump_json(cases))
    seal(copy)
    assert first_output(copy) == "image patches"


def test_damaged_and_pickled_traces_are_refused(copy: Path) -> None:
    edit_arrays(copy, lambda arrays: arrays.update({"one image.logits": np.array([{"a": print}], object)}))
    with pytest.raises(InputError, match="golden traces"):
        verify(copy)
    (copy / ARRAYS).write_bytes(b"not a zip file")
    seal(copy)
    with pytest.raises(InputError, match="golden traces"):
        verify(copy)


def test_verify_needs_no_pytorch(exact: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'torchvision', 'onnx', 'onnx_ir', 'onnxscript', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from lensmith.runtimes.evidence.verification import verify\n"
        f"report = verify({str(exact)!r})\n"
        "assert report.passed, report.summary()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_traces_the_reason_is_given(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(out: str, golden: Golden, *, own: bool = False, **options: Any) -> str:
        bundle = build(source, tmp_path / out, golden, **options)
        evidence = open_bundle(bundle).content["evidence"]["golden"]
        assert evidence["graphs"] == "nothing was compared"
        assert ("rows of each tensor" in evidence["weights"]) == (golden == "auto")
        assert (bundle / "golden").exists() == evidence["recorded"] == own
        if own:
            return str(evidence["reason"])
        with pytest.raises(InputError, match="--golden always") as error:
            verify(bundle)
        assert evidence["reason"] in str(error.value)
        assert "never compared with PyTorch" in str(error.value)
        return str(evidence["reason"])

    assert "never" in reason("never", "never")
    assert "can be asked in a context of 12 tokens" in reason("short", "auto", context=12)
    with pytest.raises(InputError, match=r"^a context of 40 tokens holds no golden trace; use a larger one$"):
        build(source, tmp_path / "always", "always", context=40)
    monkeypatch.setattr(module, "AUTO_BYTES", 1_000_000)
    assert "GB" in reason("large", "auto", own=True)
    monkeypatch.undo()

    def missing() -> None:
        raise MissingExtra("a comparison", "torch")

    monkeypatch.setattr(module, "import_torch", missing)
    assert "lensmith[torch]" in reason("missing", "auto", own=True)


def test_a_template_that_fails_is_the_reason(source: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(source, checkpoint)
    (checkpoint / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")
    evidence = open_bundle(build(checkpoint, tmp_path / "out", "auto")).content["evidence"]["golden"]
    assert evidence["reason"].count("not today") == 2  # of PyTorch's traces and of the bundle's own


def test_wrong_weights_fail_an_export_without_pytorch(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AUTO_BYTES", 1_000_000)
    real = Matrix.store
    monkeypatch.setattr(Matrix, "store", lambda self, made: [part[::-1] for part in real(self, made)])
    job = prepare(source, Options())
    with pytest.raises(CheckFailed, match="weights are not the checkpoint's: row 0 of"):
        export(job, tmp_path / "bundle")


def test_short_contexts_keep_the_short_cases(source: Path, tmp_path: Path) -> None:
    bundle = open_bundle(build(source, tmp_path / "bundle", precision="fp32", context=160))
    assert [case.name for case in read_traces(bundle).cases] == ["text only", "one image"]
    assert verify(bundle).passed
