"""What each layer's rounding does to the model's predictions, measured, and the bits that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ...exporters.graphs.blocks import SourceTensor
from ...exporters.progress import Steps
from ...exporters.storage.rounding import dequantize, quantize
from ...exporters.storage.scheme import Scheme, largest_group
from ...targets.errors import InputError
from ..solvers.budget import Option, choose
from .float_model import FloatModel, Tables
from .head import head_blocks, predict
from .prepared_samples import Sample
from .stages import Product
from .streams import (
    Effective,
    Floats,
    SampleStream,
    StageRunner,
    Values,
    table_blocks,
)

BITS, MIXED_GROUPS = (2, 3, 4, 8), (32, 64, 128)  # that mixed precision chooses from
SAMPLES, ROWS = 8, 24  # how many samples, and positions of each, the sensitivity of a layer is measured on
TABLE_STEP = 16  # of the rows of a table, one in so many is looked at
UNIT = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer, or of the token table: the KL divergence in nats when it alone is stored in the cheapest way.

    `errors` are relative output errors of its matrices for each scheme they could have.
    """

    kl: float
    errors: Mapping[str, tuple[float, ...]]
    weights: Mapping[str, float]  # of a matrix's error in the layer's KL


def options_of(scheme: Scheme, columns: int) -> list[Scheme]:
    """The schemes that a matrix may get, the cheapest first: from the bits that it has on, in groups of all sizes."""
    sizes = sorted({size for wanted in MIXED_GROUPS if (size := largest_group(columns, wanted))}, reverse=True)
    return [replace(scheme, bits=bits, group_size=size) for bits in BITS if bits >= scheme.bits for size in sizes]


def unit_of(name: str) -> str:
    """The layer that a tensor belongs to; tensors outside of layers are units of their own."""
    found = UNIT.match(name)
    return found.group(1) if found else name


class Sensitivities:
    """One pass with a stream for each unit, in which that unit alone is rounded."""

    def __init__(self, model: FloatModel, schemes: Mapping[str, Scheme]) -> None:
        self.model = model
        self.schemes = {name: scheme for name, scheme in schemes.items() if scheme.quantized}
        self.errors: dict[str, tuple[float, ...]] = {}
        self.energies: dict[str, float] = {}

    def measure(self, start: Sequence[Values], samples: Sequence[Sample], progress: Steps) -> dict[str, Sensitivity]:
        """All units with their sensitivities; `start` are the decoder's inputs for the samples."""
        plain = self.model.stream(start)
        tables = [source for source in self.model.tables if source.name in self.schemes]
        streams = {source.name: self.model.stream(start) for source in tables}
        named: dict[str, tuple[SampleStream, Tables]] = {
            name: (s, self._rounded_rows(name)) for name, s in streams.items()
        }
        named = {"": (plain, self.model.rows), **named}
        stages = self.model.decoder_stages
        for source in tables:
            self._note_table(source)
        for done, runner in enumerate(self.model.runners(stages, named)):
            for unit in {unit_of(p.source.name) for p in runner.stage.products}:
                if unit not in streams:
                    streams[unit] = self.model.stream(plain.samples)
            self._note(runner, plain)
            for unit, stream in streams.items():
                stream.advance(runner, self._rounded(runner, unit))
            plain.advance(runner)
            progress(done + 1, len(stages.stages))
        return dict(self._results(plain, streams, samples))

    def _note(self, runner: StageRunner, plain: SampleStream) -> None:
        for product in runner.stage.products:
            name, scheme = product.source.name, self.schemes.get(product.source.name)
            if scheme is None:
                continue
            weight = runner.original(product)
            energy = _energy(plain, product)
            self.energies[name] = float((np.square(weight) @ energy).sum())
            lost = _losses(weight, energy, options_of(scheme, weight.shape[1]))
            self.errors[name] = tuple((lost / max(self.energies[name], 1e-30)).tolist())

    def _note_table(self, source: SourceTensor) -> None:
        """Of some rows, from the most frequent tokens to the rarest, and the same for all columns."""
        columns = source.matrix.columns if source.matrix is not None else 0
        options, even = options_of(self.schemes[source.name], columns), np.ones(columns, np.float32)
        lost, total = np.zeros(len(options)), 0.0
        for _, block in table_blocks(self.model.checkpoint, source):
            some = block[::TABLE_STEP]
            lost += _losses(some, even, options)
            total += float(np.square(some).sum(dtype=np.float64))
        self.errors[source.name], self.energies[source.name] = tuple((lost / max(total, 1e-30)).tolist()), total

    def _rounded(self, runner: StageRunner, unit: str) -> Effective:
        def effective(product: Product) -> Floats | None:
            scheme = self.schemes.get(product.source.name)
            if scheme is None or unit_of(product.source.name) != unit:
                return None
            weight = runner.original(product)
            return _nearest(weight, options_of(scheme, weight.shape[1])[0])

        return effective

    def _rounded_rows(self, table: str) -> Tables:
        def rows(source: SourceTensor, ids: NDArray[np.int64]) -> Floats:
            found = self.model.rows(source, ids)
            return (
                found if source.name != table else _nearest(found, options_of(self.schemes[table], found.shape[1])[0])
            )

        return rows

    def _results(
        self, plain: SampleStream, streams: Mapping[str, SampleStream], samples: Sequence[Sample]
    ) -> Iterator[tuple[str, Sensitivity]]:
        rows = [np.linspace(0, len(s.ids) - 2, min(ROWS, len(s.ids) - 1)).astype(np.int64) for s in samples]
        following = np.concatenate([sample.ids[chosen + 1] for sample, chosen in zip(samples, rows, strict=True)])
        head, last = self.model.head, self.model.last

        def hidden(stream: SampleStream) -> Floats:
            return np.concatenate([v[last][0][chosen] for v, chosen in zip(stream.samples, rows, strict=True)])

        for unit, stream in streams.items():
            blocks = head_blocks(self.model.checkpoint, head, None)
            other = self._head_blocks(head) if unit == head.name else head_blocks(self.model.checkpoint, head, None)
            kl = float(predict(hidden(plain), hidden(stream), blocks, other, following).kl.mean())
            names = [name for name in self.errors if unit_of(name) == unit]
            lost = {name: self.errors[name][0] * self.energies[name] for name in names}
            total = sum(lost.values()) or 1.0
            shares = {name: value / total for name, value in lost.items()}
            yield unit, Sensitivity(kl, {name: self.errors[name] for name in names}, shares)

    def _head_blocks(self, head: SourceTensor) -> Iterator[Floats]:
        scheme = self.schemes.get(head.name)
        for block in head_blocks(self.model.checkpoint, head, None):
            yield block if scheme is None else _nearest(block, options_of(scheme, block.shape[1])[0])


def mixed_schemes(
    found: Mapping[str, Sensitivity],
    schemes: Mapping[str, Scheme],
    shapes: Mapping[str, tuple[int, int]],
    *,
    max_bytes: int | None,
    max_kl: float | None,
) -> dict[str, Scheme]:
    """The scheme of each matrix: least predicted KL within `max_bytes`, or fewest bytes within `max_kl`.

    A `max_kl` that is less than what can be predicted gets the most exact options.

    The KL of a scheme is that of the layer's cheapest one, in the share of the matrix, times the ratio of the output
    errors: divergence grows with the square of a small disturbance, as these errors do.
    """
    names, options, costs = [], [], []
    for sensitivity in found.values():
        for name, errors in sensitivity.errors.items():
            choices = options_of(schemes[name], shapes[name][1])
            base = sensitivity.kl * sensitivity.weights[name] / max(errors[0], 1e-30)
            names.append(name)
            options.append(choices)
            costs.append([Option(stored(shapes[name], o), base * e) for o, e in zip(choices, errors, strict=True)])
    least = sum(min(option.cost for option in row) for row in costs)
    limit = None if max_kl is None or max_kl <= least else max_kl
    try:
        picked = choose(costs, max_bytes=max_bytes, max_cost=limit)
    except ValueError as error:
        raise InputError(f"no mix of bits will do: {error}; raise the limit or leave it out") from error
    out = {}
    for name, choices, row, index in zip(names, options, costs, picked, strict=True):
        reason = (
            f"{choices[index].bits} bits in groups of {choices[index].group_size}: predicted KL {row[index].cost:.2g}"
        )
        out[name] = replace(choices[index], reason=reason)
    return out


def stored(shape: tuple[int, int], scheme: Scheme) -> int:
    """Bytes of a matrix in a scheme: integers, float16 scales and zero points."""
    groups = prod(shape) // scheme.group_size
    zeros = 0 if scheme.symmetric else shape[0] * -(-(shape[1] // scheme.group_size) * max(scheme.bits, 4) // 8)
    return prod(shape) * scheme.bits // 8 + 2 * groups + zeros


def _energy(stream: SampleStream, product: Product) -> Floats:
    columns = product.matrix.columns
    rows = [sample[product.input].reshape(-1, columns) for sample in stream.samples]
    total = sum((np.square(x).sum(0, dtype=np.float64) for x in rows), np.zeros(columns))
    return (total / sum(len(x) for x in rows)).astype(np.float32)


def _losses(weight: Floats, energy: Floats, options: Sequence[Scheme]) -> NDArray[np.float64]:
    """What each option loses of the outputs' energy."""
    return np.array([float((np.square(weight - _nearest(weight, option)) @ energy).sum()) for option in options])


def _nearest(weight: Floats, scheme: Scheme) -> Floats:
    made = quantize(weight, bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric)
    return dequantize(made)
