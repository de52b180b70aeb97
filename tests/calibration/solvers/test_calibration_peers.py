"""Our GPTQ against the paper's own recipe and the function that ONNX Runtime carries, on the same layer and statistics.

ONNX Runtime 1.31's (from neural-compressor) multiplies errors by the zero half of a triangular factor, so that it comes
out as round-to-nearest with its scales: the paper's recipe is the bar that counts.
"""

from __future__ import annotations

import numpy as np
import pytest
from lensmith.calibration.solvers.gptq import GptqOptions, gptq
from lensmith.calibration.solvers.levels import IntegerGrid
from lensmith.calibration.solvers.methods import METHODS
from lensmith.calibration.solvers.output_error import output_error
from lensmith.exporters.storage.rounding import Floats, dequantize, quantize
from onnxruntime.quantization.neural_compressor import weight_only

from tests.helpers.layers import make_inputs, make_weight, moments

COLUMNS = 256
GRIDS = [
    IntegerGrid(bits, group, symmetric) for bits in (2, 3, 4) for group in (32, 128) for symmetric in (True, False)
]


def papers_gptq(weight: Floats, second: Floats, grid: IntegerGrid) -> Floats:
    """GPTQ with 1 % damping, columns as they come, min-max scales of each group as it begins; in float64."""
    columns = weight.shape[1]
    damped = second + 0.01 * np.eye(columns) * np.diagonal(second).mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    work, found = weight.astype(np.float64), np.empty(weight.shape)
    for k in range(columns):
        if k % grid.group_size == 0:
            group = work[:, k : k + grid.group_size].astype(np.float32)
            made = quantize(group, bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
            scale = made.scales[:, 0].astype(np.float64)
            zero = 2 ** (grid.bits - 1) if made.zero_points is None else made.zero_points[:, 0].astype(np.float64)
        found[:, k] = (np.clip(np.rint(work[:, k] / scale + zero), 0, grid.top) - zero) * scale
        work[:, k:] -= ((work[:, k] - found[:, k]) / upper[k, k])[:, None] * upper[k, k:]
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.group_size}-{grid.symmetric}")
def test_gptq_is_better_than_its_peers(grid: IntegerGrid) -> None:
    weight = make_weight(48, COLUMNS)
    x, held_out = make_inputs(1024, COLUMNS)
    inputs, others = moments(x), moments(held_out)
    scheme = "sym" if grid.symmetric else "asym"
    onnxruntimes = weight_only.gptq(  # [columns, rows]
        weight.T.copy(), inputs.second.copy(), num_bits=grid.bits, group_size=grid.group_size, scheme=scheme
    )
    peers = [papers_gptq(weight, inputs.second, grid), onnxruntimes.T.astype(np.float32)]
    ours = [
        gptq(
            weight, inputs, grid, options=GptqOptions(damping=0.01, static_groups=False)
        ),  # the paper's but for scales
        gptq(weight, inputs, grid),
        METHODS["descent"](weight, inputs, grid),
    ]
    bar = min(output_error(weight, peer, others.second) for peer in peers)
    assert all(output_error(weight, dequantize(made), others.second) < bar for made in ours)
