"""Ways to store a model's weights that can run next to it: rounded to nearest, and as calibration stored them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...calibration.rounding import Groups, dequantize, quantize
from ..blocks import Source
from ..scheme import Scheme
from .model import FloatModel, Tables
from .stages import Product
from .store import Store
from .streams import Effective, Floats, Runner


@dataclass(frozen=True)
class Candidate:
    """What each matrix, the rows of the token table and the output head become."""

    matrices: Callable[[Runner], Effective]
    tables: Tables
    head: Callable[[Source], Groups | None]


def unchanged(model: FloatModel) -> Candidate:
    """The model itself."""
    return Candidate(lambda _: lambda _: None, model.rows, lambda _: None)


def stored(model: FloatModel, store: Store) -> Candidate:
    """The model with the weights of a store; matrices that are not there stay as they are."""

    def matrices(runner: Runner) -> Effective:
        def effective(product: Product) -> Floats | None:
            made = store.get(product.source.name)
            return None if made is None or made.groups is None else made.effective()

        return effective

    def head(source: Source) -> Groups | None:
        made = store.get(source.name)
        return None if made is None else made.groups

    return Candidate(matrices, _rows(model, head), head)


def nearest(model: FloatModel, schemes: Mapping[str, Scheme]) -> Candidate:
    """The model with every matrix rounded to nearest in its scheme."""

    def matrices(runner: Runner) -> Effective:
        def effective(product: Product) -> Floats | None:
            scheme = schemes[product.source.name]
            return dequantize(rounded(runner.original(product), scheme)) if scheme.quantized else None

        return effective

    def head(source: Source) -> Groups | None:
        scheme = schemes[source.name]
        return rounded(model.checkpoint.tensor(source.name).numpy(), scheme) if scheme.quantized else None

    return Candidate(matrices, _rows(model, head), head)


def rounded(weight: Floats, scheme: Scheme) -> Groups:
    """A matrix rounded to nearest."""
    return quantize(weight, bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric)


def some_rows(made: Groups, ids: NDArray[np.int64] | slice) -> Floats:
    """Some rows of the weights that integers stand for."""
    zeros = None if made.zero_points is None else made.zero_points[ids]
    return dequantize(Groups(made.values[ids], made.scales[ids], zeros, made.bits))


def _rows(model: FloatModel, head: Callable[[Source], Groups | None]) -> Tables:
    def rows(source: Source, ids: NDArray[np.int64]) -> Floats:
        made = head(source)
        return model.rows(source, ids) if made is None else some_rows(made, ids)

    return rows
