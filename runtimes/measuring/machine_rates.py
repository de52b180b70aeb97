"""How quickly this machine reads weights and computes products, by the operators that bundles are made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..engines.native import wanted_kernels
from ..engines.onnx.sessions import session
from .one_operator import Operator, graph_of

ROWS, COLUMNS, OUTPUTS = 512, 2048, 6144  # of products of a prompt's tokens, as in models of two billion parameters
READ_COLUMNS, READ_OUTPUTS = 2048, 131_072  # 134 MB of 4 bits: more than caches hold, as an output head is
BLOCK = 128
HEADS, HEAD_WIDTH, PATCHES = 16, 64, 2048
REPEATS, LEAST_S = 5, 0.2  # medians of so many, each of calls that take at least so long together


def measured_rates(threads: int) -> tuple[float, dict[str, float]]:
    """Bytes of weights read a second with one row of inputs, and operations a second by kind of arithmetic."""
    native, read = bool(wanted_kernels()), _product(4, 1, READ_COLUMNS, READ_OUTPUTS, native=bool(wanted_kernels()))
    nbytes = sum(weight.nbytes for weight in read.weights.values() if weight is not None)
    rates = {name: make_operations / _seconds(make(native), threads) for name, (make_operations, make) in KINDS.items()}
    return nbytes / _seconds(read, threads), rates


def _product(bits: int, rows: int, columns: int, outputs: int, *, native: bool) -> Operator:
    """Of inputs [rows, columns] with integers [outputs, columns] in blocks, as a bundle for this machine has it."""
    random = np.random.default_rng(bits)
    values = random.integers(0, 256, (outputs, columns * bits // 8), np.uint8)
    scales = random.random((outputs, columns // BLOCK)).astype(np.float16) / 100
    if bits >= 4:
        values = values.reshape(outputs, columns // BLOCK, -1)
    attributes = {"K": columns, "N": outputs, "block_size": BLOCK}
    if native:
        return Operator(f"MatMulInt{bits}", "lensmith", {"x": (1, rows, columns)},
                        {"values": values, "scales": scales}, attributes, 3)  # fmt: skip
    more = {"bits": bits, "accuracy_level": 4}
    return Operator("MatMulNBits", "com.microsoft", {"x": (1, rows, columns)},
                    {"values": values, "scales": scales.astype(np.float32)}, {**attributes, **more}, 3)  # fmt: skip


def _floats(native: bool) -> Operator:
    weights = np.random.default_rng(0).standard_normal((OUTPUTS, COLUMNS), np.float32)
    return Operator("FusedMatMul", "com.microsoft", {"x": (1, ROWS, COLUMNS)}, {"w": weights}, {"transB": 1}, 3)


def _attention(native: bool) -> Operator:
    name, domain = ("AttentionBf16", "lensmith") if native else ("MultiHeadAttention", "com.microsoft")
    shape = (1, PATCHES, HEADS * HEAD_WIDTH)
    return Operator(name, domain, {"q": shape, "k": shape, "v": shape}, {}, {"num_heads": HEADS}, 3)


def _integers(bits: int) -> Callable[[bool], Operator]:
    return lambda native: _product(bits, ROWS, COLUMNS, OUTPUTS, native=native)


PRODUCT = 2 * ROWS * COLUMNS * OUTPUTS
# By arithmetic (STAND_INS of the targets): operations of one call, and what is called.
KINDS: Mapping[str, tuple[float, Callable[[bool], Operator]]] = {
    "int4": (PRODUCT, _integers(4)),
    "int8": (PRODUCT, _integers(8)),
    "int8_stock": (PRODUCT, lambda _: _product(8, ROWS, COLUMNS, OUTPUTS, native=False)),
    "float32": (PRODUCT, _floats),
    "attention": (4 * PATCHES**2 * HEADS * HEAD_WIDTH, _attention),
}


def _seconds(operator: Operator, threads: int) -> float:
    """The median time of a call."""
    opened = session(Path(), threads, graph=graph_of(operator))
    random = np.random.default_rng(1)
    feed = {name: random.standard_normal(shape, np.float32) for name, shape in operator.inputs.items()}
    opened.run(None, feed)
    times = []
    for _ in range(REPEATS):
        calls, started = 0, time.perf_counter()
        while time.perf_counter() - started < LEAST_S:
            opened.run(None, feed)
            calls += 1
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)
