"""llama.cpp's file types through its own quantizer, with importance from samples with images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from lensmith.calibration.calibrated_export import calibrated, float_model
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.calibration.importance import gather as gather_energies
from lensmith.calibration.layerwise.layer_pass import gather, seen_by
from lensmith.calibration.layerwise.prepared_samples import IMAGE
from lensmith.calibration.layerwise.stages import by_input
from lensmith.calibration.layerwise.streams import SampleStream
from lensmith.calibration.samples.sample_preparation import open_samples
from lensmith.exporters.formats.gguf.gguf_files import needs_importance
from lensmith.exporters.formats.gguf.imatrix import Energy, read_imatrix, write_imatrix
from lensmith.exporters.pipeline import (
    Calibrated,
    Options,
    export,
    prepare,
)
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.synth.making import synth
from lensmith.runtimes import load
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.targets.errors import InputError

from tests.helpers.extras import Ran
from tests.paths import TINY

pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
PICTURE = TINY / "heldout" / "images" / "0001.png"
SAMPLES = CalibrationOptions("imatrix", None, 8, threads=1, answer_tokens=0)


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; more value heads than key heads, so that columns change places."""
    return synth("nemotron-4b", tmp_path_factory.mktemp("synth") / "nemotron", tiny=True)


@pytest.fixture(scope="module")
def important(nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    job = prepare(nemotron, Options(format="gguf", precision="q4_k_m"))
    return export(job, tmp_path_factory.mktemp("imatrix") / "bundle", golden="never", integers=calibrated(SAMPLES))


def kinds(bundle: Bundle) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(bundle.file("model.gguf")).tensors}


@pytest.mark.parametrize("precision", ["q4_k_m", "q4_0"])
def test_the_quantizer_makes_the_language_model(precision: str, nemotron: Path, tmp_path: Path) -> None:
    bundle = export(prepare(nemotron, Options(format="gguf", precision=precision)), tmp_path / "b", golden="never")
    wanted = {"q4_k_m": "Q4_K", "q4_0": "Q4_0"}[precision]
    assert kinds(bundle)["blk.0.ffn_gate.weight"] == wanted
    assert bundle.content["precision"]["model.language_model.layers.0.mlp.gate_proj.weight"]["bits"] == 4
    assert not list(bundle.path.glob(".*"))
    assert load(bundle.path, threads=1).ask("Hi", [PICTURE]).read() is not None


def test_single_tensors_have_types_of_their_own(nemotron: Path, tmp_path: Path) -> None:
    wishes = ("ffn_down=q6_k", r"blk\.1\.ffn_up=f16")
    job = prepare(nemotron, Options(format="gguf", precision="q4_0", tensor_types=wishes))
    found = kinds(export(job, tmp_path / "bundle", golden="never"))
    assert {found[f"blk.{layer}.ffn_down.weight"] for layer in range(4)} == {"Q6_K"}
    assert (found["blk.0.ffn_up.weight"], found["blk.1.ffn_up.weight"]) == ("Q4_0", "F16")


def test_importance_is_that_of_all_tokens_with_images(important: Bundle, nemotron: Path, tmp_path: Path) -> None:
    """The file against moments that calibration of ONNX bundles gathers, columns of the output projection moved."""
    job = prepare(nemotron, Options(format="gguf", precision="q4_k_m"))
    samples, model = open_samples(job, SAMPLES, tmp_path), float_model(job, 1)
    assert any((sample.kinds == IMAGE).any() for sample in samples.calibrated)
    count = sum(len(sample.ids) for sample in samples.calibrated)
    even = [np.ones(len(sample.ids), np.float32) for sample in samples.calibrated]
    stream = SampleStream(model.questions(samples.calibrated, seen_by(model, samples.calibrated, samples.pictures)))
    found = read_imatrix(important.file("imatrix.gguf"))
    expected: dict[str, Any] = {}
    for runner in model.runners(model.decoder_stages, {"float": (stream, model.rows)}):
        for value, products in by_input(runner.stage):
            sums = count * np.diagonal(gather([stream], value, products[0].matrix.columns, even).second)
            expected |= {product.source.name: sums for product in products}
        stream.advance(runner)
    prefix = "model.language_model.layers.0."
    for name, ours in {"mlp.down_proj": "ffn_down", "linear_attn.in_proj_qkv": "attn_qkv"}.items():
        np.testing.assert_allclose(found[f"blk.0.{ours}.weight"].sums, expected[f"{prefix}{name}.weight"], rtol=1e-5)
    head = count * np.diagonal(gather([stream], model.last, model.spec.decoder.hidden, even).second)
    np.testing.assert_allclose(found["token_embd.weight"].sums, head, rtol=1e-5)
    assert {found[name].count for name in ("token_embd.weight", "blk.0.ffn_down.weight")} == {count}
    moved, plain = found["blk.0.ssm_out.weight"].sums, expected[f"{prefix}linear_attn.out_proj.weight"]
    np.testing.assert_allclose(np.sort(moved), np.sort(plain), rtol=1e-5)
    heads = moved.reshape(2, 2, -1)  # value heads by turns of the key heads; the checkpoint has those of one together
    np.testing.assert_allclose(heads.transpose(1, 0, 2).reshape(-1), plain, rtol=1e-5)


def test_importance_lowers_the_error_it_stands_for(important: Bundle, nemotron: Path, tmp_path: Path) -> None:
    """Of a matrix: the mean square of what its rounding changes in its products, with and without importance."""
    plain = export(prepare(nemotron, Options(format="gguf", precision="q4_k_m")), tmp_path / "plain", golden="never")
    exact = export(prepare(nemotron, Options(format="gguf", precision="f32")), tmp_path / "exact", golden="never")
    name, errors = "blk.1.ffn_down.weight", []
    energy = read_imatrix(important.file("imatrix.gguf"))[name].mean
    weights = [values(bundle, name) for bundle in (exact, plain, important)]
    for rounded in weights[1:]:
        errors.append(float(((rounded - weights[0]) ** 2 * energy).sum()))
    assert errors[1] < errors[0]
    assert kinds(plain)[name] == kinds(important)[name]


def values(bundle: Bundle, name: str) -> np.ndarray:
    tensor = next(t for t in gguf.GGUFReader(bundle.file("model.gguf")).tensors if t.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def test_importance_matrices_are_read_as_written(tmp_path: Path) -> None:
    energies = {"blk.0.ffn_up.weight": Energy(np.arange(64, dtype=np.float32), 7)}
    write_imatrix(tmp_path / "i.gguf", energies, ["pictures"])
    found = read_imatrix(tmp_path / "i.gguf")
    assert found["blk.0.ffn_up.weight"].count == 7
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"].sums, np.arange(64))
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert {t.name: t.shape.tolist() for t in reader.tensors} == {
        "blk.0.ffn_up.weight.in_sum2": [64, 1],
        "blk.0.ffn_up.weight.counts": [1, 1],
    }


def test_file_types_that_need_importance_say_so(nemotron: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    ran = cli(
        "export", nemotron, "-o", tmp_path / "b", "--format", "gguf", "--precision", "iq2_xxs", "--golden", "never"
    )
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "add --calibrate imatrix" in ran.err
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibrated]:
    """Of a trained model with a draft head."""
    path = TINY / "qwen3_5"
    job = prepare(path, Options(format="gguf", precision="q4_k_m"))
    samples, model = open_samples(job, SAMPLES, tmp_path_factory.mktemp("samples")), float_model(job, 1)
    energies = gather_energies(model, samples.calibrated, samples.pictures)
    return path, Calibrated(importance=energies, evidence={"samples": {"source": "generated"}})


LOW = ("iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")  # refused without importance


@pytest.mark.parametrize("precision", [*LOW, "q6_k", "q4_k_m", "q4_0", "iq4_xs", "q3_k_l", "q2_k"])
def test_plans_say_what_the_quantizer_will_store(
    precision: str, gathered: tuple[Path, Calibrated], tmp_path: Path
) -> None:
    """The lowest types, too, for which the draft head needs importance like every layer."""
    path, calibrated = gathered
    job = replace(prepare(path, Options(format="gguf", precision=precision)), calibrated=calibrated)
    assert needs_importance(job) == (precision in LOW)
    plan, bundle = make_plan(job), export(job, tmp_path / "b", golden="never")
    planned, built = Counter[str](), Counter[str]()
    for row in plan.storage:
        planned[row.precision] += row.tensors
    for name in ("model.gguf", "mmproj.gguf"):
        built.update(t.tensor_type.name for t in gguf.GGUFReader(bundle.file(name)).tensors)
    assert planned == built
    sizes = sum(file.stat().st_size for file in bundle.path.iterdir())
    assert plan.bundle_bytes - plan.golden_bytes == pytest.approx(sizes, rel=0.03)


REFUSED = {
    "no type": (("--precision", "q4_0", "--tensor-type", "ffn_down"), "PATTERN=TYPE"),
    "an unknown type": (("--precision", "q4_0", "--tensor-type", "ffn_down=q4_9"), "q4_9"),
    "a pattern that finds nothing": (
        ("--precision", "q4_0", "--tensor-type", "ffn_dwon=q4_0"),
        "finds none",
    ),
    "a pattern that is none": (("--precision", "q4_0", "--tensor-type", "ffn_(=q4_0"), "no regular expression"),
    "a pattern given twice": (
        ("--precision", "q4_0", "--tensor-type", "ffn_down=q4_0", "--tensor-type", "ffn_down=q8_0"),
        "given twice",
    ),
    "a group size": (("--precision", "q4_0", "--group-size", "128"), "--group-size has no effect"),
    "zero points": (("--precision", "q4_0", "--asymmetric"), "--asymmetric has no effect"),
    "a target": (("--precision", "q4_0", "--target", "cpu"), "leave out --target cpu"),
    "a type without the quantizer": (("--precision", "f16", "--tensor-type", "ffn_down=q4_0"), "q4_k_m"),
    "another method": (("--precision", "q4_0", "--calibrate", "gptq"), "--calibrate imatrix"),
    "a budget": (("--precision", "q4_0", "--budget", "1MB"), "--budget"),
    "importance for floats": (("--precision", "f16", "--calibrate", "imatrix"), "q4_k_m"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wishes_that_do_not_fit_are_refused(case: str, nemotron: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    arguments, told = REFUSED[case]
    ran = cli("export", nemotron, "-o", tmp_path / "bundle", "--format", "gguf", *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert told in ran.err


def test_importance_of_other_columns_is_refused(nemotron: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    job = prepare(nemotron, Options(format="gguf", precision="q4_0"))
    wrong = Calibrated(importance={name: Energy(np.ones(3, np.float32), 1)}, evidence={"samples": {"source": "x"}})
    with pytest.raises(InputError, match="3 columns"):
        export(replace(job, calibrated=wrong), tmp_path / "bundle", golden="never")
