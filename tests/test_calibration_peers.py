"""Our GPTQ against the one that ONNX Runtime carries (neural-compressor's), on the same layer and statistics."""

from __future__ import annotations

import numpy as np
import pytest
from lensmith.calibration.gptq import GptqOptions, gptq
from lensmith.calibration.grid import Grid
from lensmith.calibration.measure import output_error
from lensmith.calibration.methods import METHODS
from onnxruntime.quantization.neural_compressor import weight_only

from tests.layers import make_inputs, make_weight, moments

COLUMNS = 256
GRIDS = [Grid(bits, group, symmetric) for bits in (2, 3, 4) for group in (32, 128) for symmetric in (True, False)]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.group_size}-{grid.symmetric}")
def test_gptq_is_at_least_as_good_as_onnxruntimes(grid: Grid) -> None:
    weight = make_weight(48, COLUMNS)
    x, held_out = make_inputs(1024, COLUMNS)
    inputs, others = moments(x), moments(held_out)

    def theirs(*, mse: bool) -> float:
        restored = weight_only.gptq(  # [columns, rows]; their own group scales stay in float32
            weight.T.copy(), inputs.second.copy(), num_bits=grid.bits, group_size=grid.group_size,
            scheme="sym" if grid.symmetric else "asym", mse=mse,
        )  # fmt: skip
        return output_error(weight, restored.T.astype(np.float32), others.second)

    def ours(options: GptqOptions | None) -> float:
        return output_error(weight, gptq(weight, inputs, grid, options=options), others.second)

    peer = min(theirs(mse=False), theirs(mse=True))
    assert ours(GptqOptions(damping=0.01, static_groups=False)) < peer  # the same order and damping as theirs
    assert ours(None) < peer
    assert output_error(weight, METHODS["descent"](weight, inputs, grid), others.second) < peer
