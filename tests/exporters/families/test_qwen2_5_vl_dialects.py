"""Qwen2.5-VL in the dialects for GPUs, on ONNX Runtime's CPU kernels: its windows come as indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.formats.tensorrt.profiles import profiles
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.media.places import window_index, window_side
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import InputError

from tests.exporters.families.test_qwen2_5_vl import CHUNKED, FEATURES, LOGITS, SIZES, VARIANTS, variant
from tests.exporters.formats.test_cuda_dialect import KERNELS, ON_HOST
from tests.helpers import dialect_pairs, ladder
from tests.helpers.ladder import CONVERSATIONS, IMAGES, Ladder, Pair, compile_pair, random_image
from tests.runtimes.media.test_video_parity import frames

ARCHITECTURE = "qwen2.5-vl-3b"

DIALECTS: dict[str, dict[str, Any]] = {
    "cuda": {"target": "cuda"},
    "tensorrt": {"format": "tensorrt", "target": "rtx-40", "context": 2048},
}


@pytest.fixture(scope="module", params=DIALECTS)
def pair(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """In float32, so that nothing but the order of sums differs from PyTorch."""
    ladder.need_torch()
    with pytest.MonkeyPatch.context() as patch:
        ladder.change_target(patch, activations="float32", lacks=())
        made = compile_pair(base, tmp_path_factory.mktemp("bundle") / "b", **DIALECTS[request.param])
    graphs = made.model.bundle.content["graphs"]
    assert {graph["dialect"] for graph in graphs.values()} == {request.param}
    assert {"window_patches", "window_places", "window_bias"} <= graphs["vision_encoder"]["inputs"].keys()
    return made


class TestLadder(Ladder):
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED


@pytest.mark.parametrize("size", SIZES)
def test_windows_at_the_edges(pair: Pair, size: tuple[int, int]) -> None:
    ours, theirs = pair.features(random_image(*size))
    assert relative_error(ours.features, theirs.features) < FEATURES


def test_videos(pair: Pair) -> None:
    ours, theirs = pair.all_logits([user_message("What moves?", videos=[frames(5, 150, 90)], frame_rate=2)])
    assert relative_error(ours, theirs) < LOGITS


@pytest.mark.parametrize("name", ["windows of one token", "windows of three tokens", "blocks of 3 patches"])
def test_variants(name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder.change_target(monkeypatch, activations="float32", lacks=())
    source = variant(base, tmp_path / "source", VARIANTS[name])
    made = compile_pair(source, tmp_path / "bundle", **DIALECTS["cuda"])
    errors = made.worst_error(IMAGES[:3], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_packed_weights_of_tensorrt(
    precision: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect_pairs.float32_activations(monkeypatch)
    group = 32 if precision == "int4" else None
    made = dialect_pairs.dialect_pair(base, tmp_path / "bundle", precision=precision, group_size=group)
    dialect_pairs.dequantize_weights(made)
    assert max(made.worst_error(IMAGES[:2], CONVERSATIONS["one image"]).values()) < LOGITS


def test_the_default_export_for_cuda_is_proven(base: Path, tmp_path: Path) -> None:
    bundle = export(prepare(base, Options(**DIALECTS["cuda"])), tmp_path / "bundle", golden="always")
    assert bundle.content["evidence"]["golden"]["recorded"]
    assert verify(open_bundle(bundle.path), device="cpu").passed


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_every_operator_has_a_kernel_and_steps_decide_nothing(base: Path, precision: str) -> None:
    for graph in prepare(base, Options(precision=precision, target="cuda")).graphs:
        used = {f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.model.graph}
        assert used <= (KERNELS if graph.name != "vision_encoder" else KERNELS | ON_HOST), graph.name


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 8, 8), (1, 10, 6), (1, 2, 100), (4, 22, 18)])
def test_each_patch_has_one_place_in_a_window_with_its_neighbours(grid: tuple[int, int, int]) -> None:
    merge, side = 2, 4
    found = window_index(grid, merge, side)
    count = grid[1] * grid[2]
    inside = found["window_bias"].reshape(-1) == 0
    assert sorted(found["window_patches"].reshape(-1)[inside].tolist()) == list(range(count))
    assert found["window_patches"].reshape(-1)[found["window_places"]].tolist() == list(range(count))
    tokens = np.arange(count) // merge**2
    rows, columns = np.divmod(tokens, grid[2] // merge)
    expected: dict[Any, set[int]] = {}
    for place, window in enumerate(zip(rows // side, columns // side, strict=True)):
        expected.setdefault(window, set()).add(place)
    kept = [
        set(row[bias == 0].tolist()) for row, bias in zip(found["window_patches"], found["window_bias"], strict=True)
    ]
    assert kept == [expected[window] for window in sorted(expected)]


@pytest.mark.parametrize("shape", [["windows", "area"], ["windows", 48], ["windows", 1], [64]])
def test_windows_that_are_no_squares_are_refused(shape: list[Any]) -> None:
    with pytest.raises(InputError, match="window_patches"):
        window_side(shape, 2)
    assert window_side(["windows", 64], 2) == 4


def test_engines_are_built_for_all_windows() -> None:
    """As many as a grid of the most patches can have: that of a single row of image tokens."""
    manifest = {"options": {}, "limits": {"context": 4096, "max_image_tokens": 900, "max_pixels": 28 * 28 * 900},
                "image": {"patch_size": 14, "merge_size": 2}}  # fmt: skip
    ports = {"window_patches": {"shape": ["windows", 64]}}
    least, usual, most = (size[0] for size in profiles("vision_encoder", ports, manifest)[0]["window_patches"])
    assert least <= usual <= most == 225
    for height in (1, 2, 3, 7, 30, 900):
        assert len(window_index((1, 2 * height, 2 * (900 // height)), 2, 4)["window_patches"]) <= most
