"""What TensorRT and its targets cannot do is said before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.formats.tensorrt import limits
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.storage.scheme import CHANNEL
from lensmith.runtimes.engines.tensorrt.tensorrt_library import load_library
from lensmith.targets.errors import InputError
from lensmith.targets.profile import load_target, target_text

from tests.helpers import ladder

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "4 bits on Turing": ({"target": "t4"}, "t4 has no products with int4.*expected --precision fp32, fp16, or"),
    "3 bits": ({"precision": "int3"}, "no products with int3"),
    "zero points": ({"symmetric": False}, "--asymmetric"),
    "whole rows of 4 bits": ({"group_size": CHANNEL}, "--group-size 32, 64 or 128"),
    "8-bit floats beside Ampere": ({"target": "rtx", "precision": "fp8"},
                                   "rtx has no products with fp8.*targets dgx-spark, jetson-thor, rtx-40, .*rtx-5090$"),
    "8-bit floats in ONNX Runtime": ({"format": "onnx", "target": "cpu", "precision": "fp8"}, "for --format tensorrt"),
    "a target for CPUs": ({"target": "cpu"}, "'tensorrt' is not for the target 'cpu'; expected one of dgx-spark"),
    "a target for GPUs": ({"format": "onnx"}, "'onnx' is not for the target 'rtx-40'; expected one of .*cpu, cpu-any"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tiny_checkpoint: Path) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        prepare(tiny_checkpoint, Options(**{"format": "tensorrt", "target": "rtx-40", **changes}))


def test_the_context_is_the_targets_unless_told(tiny_checkpoint: Path) -> None:
    for wanted, expected in ((None, 4096), (1000, 1000)):
        job = prepare(tiny_checkpoint, Options(format="tensorrt", target="rtx-40", context=wanted))
        assert job.spec.context == expected
        cache = next(value for value in job.graphs[1].model.graph.inputs if str(value.name).endswith(".key"))
        assert cache.shape is not None
        assert cache.shape[2] == expected


def test_a_missing_library_is_said() -> None:
    with pytest.raises(InputError, match=r"JetPack"):
        load_library("tensorrt")


def test_linear_attention_on_turing(tmp_path: Path) -> None:
    """It has products in 16 bits alone, and linear attention keeps its memory in 32."""
    source = ladder.tiny(tmp_path / "tiny", "tarn-2b")
    with pytest.raises(InputError, match=r"t4 has no products in float32.*expected one of the targets dgx-spark"):
        prepare(source, Options(format="tensorrt", target="t4", precision="fp16"))
    assert prepare(source, Options(format="tensorrt", target="t4", precision="fp32")).graphs  # for ONNX Runtime


def test_models_that_do_not_fit(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = load_target("rtx-40").device
    job = prepare(tiny_checkpoint, Options(format="tensorrt", target="rtx-40", context=4096))
    weights, states = limits.device_bytes(job)
    plan = make_plan(job)
    assert weights == sum(row.disk_bytes for row in plan.storage)
    assert states == plan.cache_bytes
    ladder.change_target(monkeypatch, device=replace(device, memory_bytes=weights + states, usable_bytes=1))
    prepare(tiny_checkpoint, job.options)
    with pytest.raises(InputError, match=r"states of 4097 tokens.*smaller --precision or --context"):
        prepare(tiny_checkpoint, replace(job.options, context=4097))


def test_a_file_of_ones_own_is_unknown_on_the_device(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Where engines are built there; others are built where the file is."""
    for name in ("jetson-thor", "rtx-40"):
        (tmp_path / f"my-{name}.toml").write_text(target_text(name))
    with pytest.raises(InputError, match="my-jetson-thor is a file of your own"):
        prepare(tiny_checkpoint, Options(format="tensorrt", target=str(tmp_path / "my-jetson-thor.toml")))
    job = prepare(tiny_checkpoint, Options(format="tensorrt", target=str(tmp_path / "my-rtx-40.toml")))
    assert job.target.name == "my-rtx-40"
