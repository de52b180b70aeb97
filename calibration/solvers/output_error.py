"""The error that a quantized matrix makes in its outputs."""

from __future__ import annotations

import numpy as np

from ...exporters.storage.rounding import Floats, Groups, dequantize
from .levels import cuts

ROWS = 1024  # rows whose products are held in memory at once


def row_energies(rows: Floats, second: Floats) -> Floats:
    """Mean square of each output: float32 [rows], the diagonal of rows @ second @ rowsᵀ."""
    parts = [np.einsum("rc,rc->r", rows[cut] @ second, rows[cut]) for cut in cuts(0, len(rows), ROWS)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def output_error(weight: Floats, quantized: Groups | Floats, second: Floats) -> float:
    """tr(E S Eᵀ) / tr(W S Wᵀ) with E = quantized - weight and S the inputs' second moments; 0 where nothing is lost."""
    restored = dequantize(quantized) if isinstance(quantized, Groups) else quantized
    lost = float(row_energies(restored - weight, second).sum(dtype=np.float64))
    total = float(row_energies(weight, second).sum(dtype=np.float64))
    if total > 0:
        return max(lost, 0.0) / total
    return 0.0 if lost <= 0 else float("inf")
