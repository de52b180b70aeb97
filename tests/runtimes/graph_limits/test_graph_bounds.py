"""Bounds of what graphs make hold: every value of a run is at most as large as its bound, in each family."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from lensmith.runtimes.graph_limits.graph_values import _named, constant, inputs
from lensmith.runtimes.graph_limits.graph_work import Values, Walk
from lensmith.runtimes.graph_limits.monomials import (
    GRID,
    Scale,
    Size,
    over,
    product,
    symbol,
    times,
)
from lensmith.runtimes.graph_limits.onnx_messages import parse_model
from lensmith.runtimes.media.places import ArlowPlaces, qwen_index

onnx = pytest.importorskip("onnx", reason="needs lensmith[export]")
GRID_SIZES, SEQ, CAPACITY = (1, 8, 12), 12, 20
PATCHES = math.prod(GRID_SIZES)
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
         "tensor(int32)": np.int32}  # fmt: skip
SLACK = 3  # that all bounds together may be above the truth
CASES = [("qwen3-vl-2b", "decoder"), ("qwen3-vl-2b", "vision_encoder"), ("tarn-2b", "decoder"), ("tarn-2b", "mtp"),
         ("vqwen3-4b", "vision_encoder"), ("arlow-vision", "vision_encoder")]  # fmt: skip


def run_whole(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every value that a graph makes of random inputs."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {port.name for port in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = ort.InferenceSession(model.SerializeToString(), _plain(), providers=["CPUExecutionProvider"])
    made = session.run(names, {port.name: _random(port) for port in session.get_inputs()})
    return {name: value.shape for name, value in zip(names, made, strict=True)}


def _plain() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return options


def _random(port: Any) -> Any:
    special = {"image_grid_thw": [GRID_SIZES], "num_logits": [3], "num_hidden_states": [4], "past_lengths": [5],
               "input_ids": np.arange(SEQ)[None]}  # fmt: skip
    if port.name in special:
        return np.array(special[port.name], TYPES[port.type])
    sizes = {"seq": SEQ, "capacity": CAPACITY, "patches": PATCHES, "image_tokens": 0}
    shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in port.shape]
    return np.random.default_rng(0).normal(size=shape).astype(TYPES[port.type])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_value_is_within_its_bound(made: Callable[[str], Path], kind: str, name: str) -> None:
    path = made(kind) / f"{name}.onnx"
    model = parse_model(path.read_bytes())
    sizes = {"tokens": SEQ, "image tokens": SEQ, "patches": PATCHES, "capacity": CAPACITY, "merge": 2}
    scale, ports = Scale(sizes, PATCHES), inputs(model.graph, "capacity")
    values: Values = {tensor.name: constant(tensor) for tensor in model.graph.initializer}
    values |= {name.encode(): known for name, known in ports}
    Walk({(item.domain, item.name): item for item in model.functions}, scale).run(model.graph.node, values)
    shapes = run_whole(path)
    assert len(shapes) > 40
    for value, shape in shapes.items():
        known = values[value.encode()]
        assert known is not None
        bounds = [scale.value(size) for size in known.dims]
        assert len(bounds) == len(shape), value
        assert all(size <= bound for size, bound in zip(shape, bounds, strict=True)), (value, shape, bounds)
        assert math.prod(shape) <= scale.value(known.size), (value, shape, bounds)
    bounds = [scale.value(known.size) for name in shapes if (known := values[name.encode()]) is not None]
    assert sum(bounds) <= SLACK * sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("grid", [(1, 4, 6), (2, 2, 2), (3, 8, 4), (1, 3, 5)])
def test_index_inputs_are_no_longer_than_the_bounds_of_their_ports(grid: tuple[int, int, int]) -> None:
    patches = math.prod(grid)
    scale = Scale({"patches": patches}, patches)
    index = ArlowPlaces(merge=1, radius=0.5, strength=0.1)(grid)
    for name, values in {**index, **qwen_index((1, *grid[1:]), 1)}.items():
        bound = scale.value(_named(name, values.ndim)[-1])
        assert values.shape[-1] <= bound <= 8 * values.shape[-1], name


def test_products_of_a_grid_are_its_patches() -> None:
    scale = Scale({"merge": 2}, 60)
    frames, height, width = map(symbol, GRID)
    assert scale.value(times(frames, height, width)) == scale.value(height) == 60
    assert scale.value(times(height, height)) == 3600
    cells = over(product((frames, height, width, Size(8))), times(height, width))
    assert cells == Size(8, (("frames", 1),))
    assert scale.value(times(scale.plus(height, Size(1)), width)) <= 2 * 60
    assert not scale.plus(height, width).exact
