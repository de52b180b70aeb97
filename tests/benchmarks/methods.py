"""What each method of quantization loses on the matrices of a checkpoint, next to ONNX Runtime's GPTQ; and its time.

ONNX Runtime 1.31's does not pass errors on (see test_calibration_peers.py), and is close to round-to-nearest.
Inputs are made: correlated, with outlier channels, one sample to calibrate with and one to measure on.

python tests/benchmarks/methods.py CHECKPOINT ... [--each 1] [--limit 8] [--bits 2 3 4]
python tests/benchmarks/methods.py --times
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lensmith.calibration.solvers.inputs import Inputs
from lensmith.calibration.solvers.levels import IntegerGrid
from lensmith.calibration.solvers.methods import METHODS
from lensmith.calibration.solvers.output_error import output_error
from lensmith.calibration.solvers.smoothing import search_scales
from lensmith.exporters.storage.rounding import Floats, dequantize
from lensmith.exporters.storage.scheme import largest_group
from onnxruntime.quantization.neural_compressor import weight_only
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.layers import make_inputs, moments

SIZES = ((2048, 2048), (6144, 2048), (2048, 6144))
PEERS = {"ort gptq": False, "ort gptq mse": True}
COLUMNS = [*METHODS, "awq+rtn", "awq+descent", *PEERS]


def matrices(checkpoint: Path, each: int) -> Iterator[Floats]:
    """Weight matrices of a checkpoint, at most `each` of one shape."""
    seen: Counter[tuple[int, ...]] = Counter()
    for name, tensor in sorted(load_file(checkpoint / "model.safetensors").items()):
        if tensor.ndim == 2 and min(tensor.shape) >= 64 and "embed" not in name and seen[tensor.shape] < each:
            seen[tensor.shape] += 1
            yield tensor.astype(np.float32)


def restored(method: str, weight: Floats, inputs: Inputs, grid: IntegerGrid) -> Floats:
    """The weights that a method stands for after quantization."""
    if method in PEERS:
        scheme = "sym" if grid.symmetric else "asym"
        found: Floats = weight_only.gptq(weight.T.copy(), inputs.second.copy(), num_bits=grid.bits, mse=PEERS[method],
                                         group_size=grid.group_size, scheme=scheme).T.astype(np.float32)  # fmt: skip
        return found
    if not method.startswith("awq+"):
        return dequantize(METHODS[method](weight, inputs, grid))
    scale = search_scales([weight], inputs, METHODS["mse"], grid)[0]
    return dequantize(METHODS[method.removeprefix("awq+")](weight * scale, inputs.divided(scale), grid)) / scale


def errors(weights: list[Floats], bits: int, group: int, symmetric: bool) -> list[float]:
    """Geometric mean over the matrices of the relative output error on the held-out sample, for each method."""
    logs = []
    for seed, weight in enumerate(weights):
        columns = weight.shape[1]
        grid = IntegerGrid(bits, (largest_group(columns, group) if group else None) or columns, symmetric)
        inputs, held_out = (moments(x) for x in make_inputs(2048, columns, seed))
        logs.append([np.log(output_error(weight, restored(method, weight, inputs, grid), held_out.second))
                     for method in COLUMNS])  # fmt: skip
    return [float(value) for value in np.exp(np.mean(logs, axis=0))]


def show_errors(checkpoints: list[Path], each: int, limit: int, widths: list[int]) -> None:
    weights = [weight for checkpoint in checkpoints for weight in matrices(checkpoint, each)]
    weights = weights[:: -(-len(weights) // limit)]
    table = Table("bits", "group", *COLUMNS, title=f"output error in %, {len(weights)} matrices")
    for bits in widths:
        for group in (32, 128, 0):
            for symmetric in (True, False):
                values = errors(weights, bits, group, symmetric)
                kind = f"{group or 'row'} {'sym' if symmetric else 'asym'}"
                table.add_row(str(bits), kind, *(f"{100 * value:.3g}" for value in values))
    Console(width=140).print(table)


def show_times() -> None:
    """Processor seconds: with one thread, the seconds of an idle machine."""
    table = Table("rows x columns", "grid", *METHODS, title="processor seconds")
    for rows, columns in SIZES:
        random = np.random.default_rng(0)
        weight = random.standard_normal((rows, columns), dtype=np.float32)
        x = random.standard_normal((2048, columns), dtype=np.float32)
        inputs = moments(x + x[:, ::-1] + x[:, :1])
        for grid in (IntegerGrid(4, 128), IntegerGrid(4, 32), IntegerGrid(4, 128, False)):
            cells = []
            for method in METHODS.values():
                start = time.process_time()
                method(weight, inputs, grid)
                cells.append(f"{time.process_time() - start:.1f}")
            kind = f"4 bits, {grid.group_size} {'sym' if grid.symmetric else 'asym'}"
            table.add_row(f"{rows} x {columns}", kind, *cells)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--each", type=int, default=1, help="matrices of each shape and checkpoint")
    parser.add_argument("--limit", type=int, default=8, help="matrices in all")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args()
    if arguments.checkpoints:
        show_errors(arguments.checkpoints, arguments.each, arguments.limit, arguments.bits)
    if arguments.times:
        show_times()


if __name__ == "__main__":
    main()
