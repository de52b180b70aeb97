"""Stock ONNX Runtime on Arm rounds what it rounds elsewhere: activations by block, no scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.storage.rounding import Groups, dequantize
from numpy.typing import NDArray

from tests.arm.emulator import PROCESSORS, run
from tests.arm.patience import take_time
from tests.arm.root import ArmRoot
from tests.helpers.packed_products import draw_groups, product_graph

Array = NDArray[Any]
ROWS, COLUMNS, OUTPUTS = 9, 512, 40
KINDS = {f"int{bits} block {block} {'symmetric' if symmetric else 'asymmetric'}": (bits, block, symmetric)
         for bits in (2, 3, 4, 8) for block in (32, 64, 128) for symmetric in (True, False)}  # fmt: skip
# Of the largest value, seen: sums of float32 in another order 2e-7, with 8 bits 2e-5 where bytes have no sign;
# KleidiAI, which rounds activations by row and scales to bfloat16, 1e-2 to 5e-2.
SUMS = 5e-5


def groups_of(kind: str) -> Groups:
    bits, block, symmetric = KINDS[kind]
    return draw_groups(OUTPUTS, COLUMNS, block, bits, symmetric, seed=bits)


def activations() -> Array:
    """Rows as networks have them: some columns are far larger than the others."""
    draw = np.random.default_rng(1)
    x: Array = (draw.normal(size=(ROWS, COLUMNS)) * np.exp(draw.normal(0, 1.5, COLUMNS))).astype(np.float32)
    return x


def rounded_by_block(x: Array, block: int) -> Array:
    """Activations in 8 bits and back, as ONNX Runtime's kernels for x86 round them too."""
    blocks = x.reshape(len(x), -1, block)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    rounded: Array = (np.rint(blocks / scales) * scales.astype(np.float64)).reshape(x.shape)
    return rounded


@pytest.fixture(scope="module")
def results(arm: ArmRoot, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Array]]:
    """What a processor makes of all kinds; each runs once."""
    folder = tmp_path_factory.mktemp("graphs")
    for kind in KINDS:
        (folder / f"{kind}.onnx").write_bytes(product_graph(groups_of(kind), accuracy_level=4))
        np.save(folder / f"{kind}.npy", activations())

    @cache
    def of(processor: str) -> dict[str, Array]:
        out = folder / f"{processor}.npz"
        run(arm, processor, [Path(__file__).with_name("products.py"), folder, out],
            LENSMITH_NATIVE="0", ORT_DISABLE_TELEMETRY="1")  # fmt: skip
        with np.load(out) as found:
            return dict(found)

    return of


def error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_blocks_are_rounded_and_scales_are_whole(
    processor: str, kind: str, results: Callable[[str], dict[str, Array]]
) -> None:
    take_time(processor == "max")
    matrix = dequantize(groups_of(kind)).astype(np.float64)
    # Without products of bytes nothing is rounded at all.
    x = activations() if processor == "cortex-a72" else rounded_by_block(activations(), KINDS[kind][1])
    for rows in (1, ROWS):
        found = results(processor)[f"ours {kind} {rows}"]
        assert error(found, x[:rows] @ matrix.T) < SUMS


@pytest.mark.parametrize("kind", [kind for kind, (bits, _, symmetric) in KINDS.items() if symmetric and bits < 8])
def test_a_session_without_the_setting_is_another_matter(kind: str, results: Callable[[str], dict[str, Array]]) -> None:
    """When this fails, `mlas.disable_kleidiai` has become needless."""
    matrix = dequantize(groups_of(kind)).astype(np.float64)
    x = rounded_by_block(activations(), KINDS[kind][1])
    assert error(results("max")[f"stock {kind} {ROWS}"], x @ matrix.T) > 100 * SUMS
