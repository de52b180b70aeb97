"""Vision encoders with activations in 8 bits: simulated as the kernel computes, kept where this model bears them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from lensmith.calibration.activation_roles import choose_roles
from lensmith.calibration.calibrated_export import calibrated, float_model
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.calibration.layerwise.activations import LIMIT, feature_errors, within
from lensmith.calibration.layerwise.candidates import nearest
from lensmith.calibration.layerwise.layer_pass import seen_by
from lensmith.calibration.layerwise.prepared_samples import Picture, keys_of
from lensmith.calibration.mixed_precision import schemes_of
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.storage.rounding import through_8_bits
from lensmith.runtimes.engines.contract import ImageFeatures
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.helpers import ladder
from tests.helpers.layered import Bench, Whole
from tests.paths import TINY

OUTLIER = 64.0


def by_onnx_runtime(x: NDArray[np.float32]) -> NDArray[np.float32]:
    nodes = [
        onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "round", ports[:1], ports[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rounded: NDArray[np.float32] = session.run(["y"], {"x": x})[0]
    return rounded


@pytest.mark.parametrize("shift", [0.0, 4.0, -4.0, 0.3])
def test_rounding_is_that_of_dynamic_quantize_linear(shift: float) -> None:
    x = (np.random.default_rng(3).standard_normal((40, 16)) + shift).astype(np.float32)
    ours, theirs = through_8_bits(x), by_onnx_runtime(x)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * abs(step) + 1e-6)
    assert 0.2 * step < np.abs(ours - x).max() < 1.01 * step


def test_nothing_but_zeros_stays() -> None:
    assert not through_8_bits(np.zeros((2, 3), np.float32)).any()


def test_roles_that_fit_together_are_kept_in_their_order() -> None:
    added = {"a": 0.3, "b": 0.1, "c": 0.9, "d": 0.2}
    assert within(added, 0.65) == ("a", "b", "d")
    assert within(added, 0.35) == ("b", "d")
    assert within(added, 0.05) == ()
    assert within(added, 2.0) == ("a", "b", "c", "d")


def with_outlier(path: Path, out: Path) -> Path:
    """The same function: a channel of a norm much larger, and the weights that read it as much smaller."""
    out.mkdir()
    for file in path.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(path / "model.safetensors").items()}
    prefix = next(name for name in tensors if name.endswith("blocks.0.norm1.weight")).removesuffix("norm1.weight")
    for part in ("weight", "bias"):
        tensors[f"{prefix}norm1.{part}"][5] *= OUTLIER
    tensors[f"{prefix}attn.qkv.weight"][:, 5] /= OUTLIER
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def pictures(bench: Bench) -> list[Picture]:
    return [bench.samples.pictures[key] for key in keys_of(bench.samples.calibrated)]


def operators(bundle: Path) -> int:
    graph = onnx.load(bundle / "vision_encoder.onnx", load_external_data=False).graph
    return sum(node.op_type in ("DynamicQuantizeMatMul", "MatMulInt8Rows") for node in graph.node)


def test_features_are_off_as_far_as_those_of_the_bundle(
    benches: Callable[[str], Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the kernels of ONNX Runtime; those of other matrices keep activations in float32.

    A picture may lie at a tie: a millionth of its pixels moves its error by a fifth, from one value to another.
    """
    ladder.change_target(monkeypatch, accuracy_level=1)
    bench = benches("llava")
    job = prepare(bench.path, Options(precision="int8"))
    bundle = export(job, tmp_path / "bundle", golden="never").path
    assert operators(bundle) > 0
    model, samples = bench.model, (*bench.samples.calibrated, *bench.samples.held_out)
    plain, theirs = seen_by(model, samples, bench.samples.pictures), Whole(bundle).features(bench)
    rounded = {"made": nearest(model, schemes_of(job.graphs))}
    for key in keys_of(samples):
        picture, found = bench.samples.pictures[key], relative([plain[key]], [theirs[key]])
        near = [replace(picture, patches=picture.patches * np.float32(1 + noise)) for noise in (0, 1e-6, -1e-6)]
        ours = [feature_errors(model, rounded, [each])["made"] for each in near]
        assert min(abs(each / found - 1) for each in ours) < 1e-3  # float32 sums in another order


def relative(plain: Sequence[ImageFeatures], other: Sequence[ImageFeatures]) -> float:
    lost = sum(float(np.square(a.features - b.features).sum()) for a, b in zip(plain, other, strict=True))
    return lost / sum(float(np.square(a.features).sum()) for a in plain)


def test_a_trained_encoder_bears_all_roles_and_with_an_outlier_all_but_one(tmp_path: Path) -> None:
    samples = TINY / "heldout" / "tasks.jsonl"
    offered = {"vision.qkv", "vision.proj", "vision.fc1", "vision.fc2"}
    for path, kept in (
        (TINY / "qwen3_vl", offered),
        (with_outlier(TINY / "qwen3_vl", tmp_path / "outlier"), offered - {"vision.qkv"}),
    ):
        job = prepare(path, Options())
        chosen = CalibrationOptions(method="mse", samples=samples, limit=6, threads=1, answer_tokens=0)
        bundle = export(job, tmp_path / path.name / "bundle", golden="never", integers=calibrated(chosen))
        measured = bundle.content["evidence"]["calibration"]["activations"]
        assert set(measured["roles"]) == kept
        assert set(measured["added"]) == offered
        assert sum(measured["added"][role] for role in kept) <= LIMIT
        assert measured["error"] == pytest.approx(
            measured["weights_error"] + sum(measured["added"][role] for role in kept), rel=0.3
        )
        rows = {n: r for n, r in bundle.content["precision"].items() if ".blocks." in n and "attn.qkv.weight" in n}
        for row in rows.values():
            assert row["int8_activations"] == ("vision.qkv" in kept)
            assert ("no int8 activations" in row["reason"]) == ("vision.qkv" not in kept)
            assert "to the error of image features" in row["reason"]
        assert operators(bundle.path) == len(kept) * len(rows)


def test_a_target_without_roles_measures_nothing(benches: Callable[[str], Bench]) -> None:
    bench = benches("llava")
    job = prepare(bench.path, Options(target="cpu-any"))
    found = choose_roles(float_model(job, 1), job, pictures(bench))
    assert found.measured is None
    assert found.job is job
    assert not found.reasons
