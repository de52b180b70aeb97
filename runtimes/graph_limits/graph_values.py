"""What is known of a value in a graph before it runs: bounds of its sizes and, of integers, of the numbers in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .monomials import (
    GRID,
    ONE,
    Scale,
    Size,
    product,
    symbol,
)

MOST_NUMBERS = 64  # of a list that is followed one by one
INTS = {6: np.int32, 7: np.int64}  # types whose numbers are followed
BYTES = (2, 3, 9, 17, 21, 22)  # types of up to 8 bits
LENGTHS = {"past_lengths", "seqlens_k", "total_sequence_length"}
COUNTS = {"num_logits", "num_hidden_states"}
STATES = ("past_key_values.", "past.")
# What the runtime gives to graphs: for each input the sizes that vary, where its shape has names.
PORTS: Mapping[str, tuple[Size, ...]] = {
    "input_ids": (ONE, symbol("tokens")),
    "hidden_states": (ONE, symbol("tokens"), ONE),
    "image_features": (symbol("image tokens"), ONE),
    "deepstack_features": (ONE, symbol("image tokens"), ONE),
    "logit_positions": (symbol("tokens"),),
    "hidden_positions": (symbol("tokens"),),
    "image_grid_thw": (ONE, ONE),
    "offset_bias": (Size(8, symbol("patches").powers, False),),
    # A row of image tokens has one window for each side of a window, here of 4 blocks of 2 x 2 patches.
    **dict.fromkeys(("window_patches", "window_bias"), (Size(1 / 16, symbol("patches").powers, False), ONE)),
    "cell_patches": (ONE, Size(0.25, tuple((name, 1) for name in GRID))),
    **dict.fromkeys((*LENGTHS, *COUNTS), (ONE,)),
}  # fmt: skip
PATCHES = product(map(symbol, GRID))


class Refused(Exception):
    """What is wrong with a graph, as a sentence without the name of its file."""


class Known(NamedTuple):
    """A value: bounds of its sizes, of each of its few numbers or of all of them, and whether inputs matter to it.

    `width` are the bytes of a number, where they are known to be few; `natural` says that no number is below zero.
    """

    dims: tuple[Size, ...]
    numbers: tuple[Size, ...] | None = None
    most: Size | None = None
    constant: bool = False
    width: int = 4
    natural: bool = False

    @property
    def size(self) -> Size:
        """How many values it has."""
        return product(self.dims)

    def each(self, what: str) -> tuple[Size, ...]:
        """Its numbers; Refused where they are not known."""
        if self.numbers is None:
            raise Refused(f"it has {what} from numbers that have no bound")
        return self.numbers

    def largest(self, scale: Scale) -> Size | None:
        """A bound of all its numbers."""
        if self.numbers is None or not self.numbers:
            return self.most
        largest = self.numbers[0]
        for number in self.numbers[1:]:
            largest = scale.larger(largest, number)
        return largest


def fixed(what: str, known: Known | None) -> list[int]:
    """Numbers that are the same in each run; Refused where they are not."""
    if known is None or known.numbers is None or not all(number.is_number() for number in known.numbers):
        raise Refused(f"it has {what} that are not constants")
    return [int(number.factor) for number in known.numbers]


def constant(tensor: Any) -> Known:
    """A tensor in the file."""
    dims = tuple(Size(size) for size in tensor.dims)
    count = math.prod(tensor.dims)
    if tensor.data_type not in INTS or tensor.data_location or count > 4096:
        return Known(dims, constant=True, width=1 if tensor.data_type in BYTES else 4)
    if tensor.HasField("raw_data"):
        numbers: Iterable[Any] = np.frombuffer(tensor.raw_data, INTS[tensor.data_type])
    else:
        numbers = (*tensor.int64_data, *tensor.int32_data)
    return listed(dims, [Size(int(number)) for number in numbers])


def listed(dims: tuple[Size, ...], numbers: Sequence[Size]) -> Known:
    """A constant with these numbers."""
    natural = all(number.factor >= 0 for number in numbers)
    if len(numbers) <= MOST_NUMBERS:
        return Known(dims, tuple(numbers), constant=True, natural=natural)
    most = Size(max(abs(number.factor) for number in numbers), (), False)
    return Known(dims, None, most, constant=True, natural=natural)


def inputs(graph: Any, keys: str) -> Iterator[tuple[str, Known]]:
    """What goes into a graph, by name; `keys` is what a token number or a length is bounded by."""
    for port in graph.input:
        name = port.name.decode("utf-8", "replace")
        given = port.type.tensor_type.shape.dim
        named = _named(name, len(given))
        dims = tuple(
            Size(dim.dim_value) if dim.HasField("dim_value") else size for dim, size in zip(given, named, strict=True)
        )
        numbers = _numbers(name, keys)
        yield name, Known(dims, numbers, natural=numbers is not None)


def _named(name: str, rank: int) -> tuple[Size, ...]:
    if name.startswith(STATES):
        return (ONE, ONE, symbol("capacity"), ONE)[:rank]
    if name == "position_ids":
        return (ONE, ONE, symbol("tokens"))[-rank:]
    if name == "pixel_values":
        return (PATCHES, ONE) if rank == 2 else (ONE,) * rank
    usual = (ONE, PATCHES) if rank == 2 else (PATCHES,)
    found = PORTS.get(name, usual)
    if len(found) != rank and not (name in LENGTHS and rank == 0):
        raise Refused(f"its input {name[:200]!r} has {rank} sizes")
    return found[:rank]


def _numbers(name: str, keys: str) -> tuple[Size, ...] | None:
    if name == "image_grid_thw":
        return tuple(map(symbol, GRID))
    if name in LENGTHS:
        return (Size(1, symbol(keys).powers, False),)
    if name in COUNTS:
        return (Size(1, symbol("tokens").powers, False),)
    return None
