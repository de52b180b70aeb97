"""Ways to store a model's weights that can run next to it: rounded to nearest, and as calibration stored them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...exporters.graphs.blocks import SourceTensor
from ...exporters.storage.rounding import Groups, dequantize, quantize
from ...exporters.storage.scheme import Scheme
from .float_model import FloatModel, Tables
from .stages import Product
from .store import Store
from .streams import (
    Effective,
    Floats,
    SampleStream,
    StageRunner,
    table_blocks,
)


@dataclass(frozen=True)
class Candidate:
    """What each matrix, the rows of the token table and the output head become, and whose inputs are rounded."""

    matrices: Callable[[StageRunner], Effective]
    tables: Tables
    head: Callable[[SourceTensor], Groups | None]
    rounded: frozenset[str] = frozenset()  # names of matrices whose inputs are rounded to 8 bits

    def advance(self, stream: SampleStream, runner: StageRunner) -> None:
        """Take a stream through one stage."""
        stream.advance(runner, self.matrices(runner), self.rounded)


def unchanged(model: FloatModel) -> Candidate:
    """The model itself."""
    return Candidate(lambda _: lambda _: None, model.rows, lambda _: None)


def stored(model: FloatModel, schemes: Mapping[str, Scheme], store: Store) -> Candidate:
    """The model with the weights of a store; quantized matrices that are not there are rounded to nearest."""
    rest = nearest(model, schemes)

    def matrices(runner: StageRunner) -> Effective:
        others = rest.matrices(runner)

        def effective(product: Product) -> Floats | None:
            made = store.get(product.source.name)
            return others(product) if made is None or made.groups is None else made.effective()

        return effective

    def head(source: SourceTensor) -> Groups | None:
        made = store.get(source.name)
        return rest.head(source) if made is None else made.groups

    def rows(source: SourceTensor, ids: NDArray[np.int64]) -> Floats:
        made = store.get(source.name)
        return rest.tables(source, ids) if made is None or made.groups is None else some_rows(made.groups, ids)

    return Candidate(matrices, rows, head, rest.rounded)


def nearest(model: FloatModel, schemes: Mapping[str, Scheme]) -> Candidate:
    """The model with every matrix rounded to nearest in its scheme."""

    def matrices(runner: StageRunner) -> Effective:
        def effective(product: Product) -> Floats | None:
            scheme = schemes[product.source.name]
            if scheme.bits == 16:  # no integers where the inputs do not divide into groups
                return runner.original(product).astype(np.float16).astype(np.float32)
            return dequantize(rounded(runner.original(product), scheme)) if scheme.quantized else None

        return effective

    def rows(source: SourceTensor, ids: NDArray[np.int64]) -> Floats:
        found, scheme = model.rows(source, ids), schemes[source.name]
        return dequantize(rounded(found, scheme)) if scheme.quantized else found

    def head(source: SourceTensor) -> Groups | None:
        scheme = schemes[source.name]
        if not scheme.quantized:
            return None
        return joined([rounded(block, scheme) for _, block in table_blocks(model.checkpoint, source)])

    return Candidate(matrices, rows, head, frozenset(name for name, s in schemes.items() if s.int8_activations))


def rounded(weight: Floats, scheme: Scheme) -> Groups:
    """A matrix rounded to nearest."""
    return quantize(weight, bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric)


def joined(blocks: Sequence[Groups]) -> Groups:
    """Blocks of rows as one."""
    values, scales = (np.concatenate([getattr(block, part) for block in blocks]) for part in ("values", "scales"))
    zeros = [block.zero_points for block in blocks if block.zero_points is not None]
    return Groups(values, scales, np.concatenate(zeros) if zeros else None, blocks[0].bits)


def rows_of(made: Groups, rows: NDArray[np.int64] | slice) -> Groups:
    """Some rows of integers."""
    return Groups(made.values[rows], made.scales[rows], None if (z := made.zero_points) is None else z[rows], made.bits)


def some_rows(made: Groups, rows: NDArray[np.int64] | slice) -> Floats:
    """Some rows of the weights that integers stand for."""
    return dequantize(rows_of(made, rows))
