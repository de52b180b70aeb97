"""What TensorRT and its targets cannot do is said before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.export import Options, prepare
from lensmith.exporters.scheme import CHANNEL
from lensmith.runtimes.tensorrt_library import load_library
from lensmith.targets.errors import InputError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "4 bits on Turing": ({"target": "t4"}, "t4 has no products with int4.*int8"),
    "3 bits": ({"precision": "int3"}, "no products with int3"),
    "zero points": ({"symmetric": False}, "--asymmetric"),
    "whole rows of 4 bits": ({"group_size": CHANNEL}, "--group-size 32, 64 or 128"),
    "a target for CPUs": ({"target": "cpu"}, "'tensorrt' is not for the target 'cpu'; expected one of dgx-spark"),
    "a target for GPUs": ({"format": "onnx"}, "'onnx' is not for the target 'rtx-40'; expected one of cpu"),
}


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
