"""Leaf modules of graph descriptions: parameters that know their source tensor and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import nn

from ..storage.scheme import Scheme
from .dialect import Dialect
from .graph_terms import Op, Value
from .matrices import Derived, Matrix, Table, offset, to_float


class Linear(nn.Module):
    """x @ weight.T + bias."""

    def __init__(self, dialect: Dialect, inputs: int, outputs: int, scheme: Scheme, *, bias: bool) -> None:
        super().__init__()
        self.dialect = dialect
        self.weight = dialect.matrix(outputs, inputs, scheme)
        self.bias = nn.Parameter([outputs]) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        return self.dialect.matmul(op, x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, with the residual addition before it on request."""

    def __init__(self, dialect: Dialect, size: int, eps: float, by: float = 0.0) -> None:
        super().__init__()
        self.dialect, self.eps = dialect, eps
        self.weight = offset([size], by)

    def forward(self, op: Op, x: Value, skip: Value | None = None) -> tuple[Value, Value]:
        """The normalized sum of `x` and `skip`, and the sum itself."""
        if skip is None:
            return self.dialect.rms_norm(op, x, self.weight, self.eps), x
        return self.dialect.add_rms_norm(op, x, skip, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, with the residual addition before it on request."""

    def __init__(self, dialect: Dialect, size: int, eps: float) -> None:
        super().__init__()
        self.dialect, self.eps = dialect, eps
        self.weight = nn.Parameter([size])
        self.bias = nn.Parameter([size])

    def forward(self, op: Op, x: Value, skip: Value | None = None) -> tuple[Value, Value]:
        """The normalized sum of `x` and `skip`, and the sum itself."""
        if skip is None:
            return self.dialect.layer_norm(op, x, self.weight, self.bias, self.eps), x
        return self.dialect.add_layer_norm(op, x, skip, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class SourceTensor:
    """One source tensor and the initializers made from it."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    matrix: Matrix | None = None  # None: stored as it is, in float32
    alias: nn.Parameter | None = None  # a second view of the first parameter's bytes

    def pack(self, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The stored form of some rows of the source tensor."""
        if self.matrix is not None:
            return self.matrix.pack(rows)
        parameter = self.parameters[0]
        return [to_float(parameter.derive(rows) if isinstance(parameter, Derived) else rows, 32)]


def sources(root: nn.Module, prefix: str) -> Iterator[SourceTensor]:
    """Every source tensor that the modules below `root` need; names follow the checkpoint, below `prefix`."""
    views: dict[str, nn.Parameter | None] = {}
    for path, module in root.named_modules():
        name = ".".join(part for part in (prefix, path) if part)
        if isinstance(module, Table):
            views[f"{name}.weight"] = module.view
        elif isinstance(module, Matrix):
            yield SourceTensor(name, tuple(module.parameters(recurse=False)), module, views.get(name))
        else:
            for key, parameter in module.named_parameters(recurse=False):
                yield SourceTensor(f"{name}.{key}", (parameter,))
