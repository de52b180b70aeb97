"""How a prompt is cut: what it shares with another one, its chunks, and where states are saved, worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.generation.prefill import (
    SAVING_TOKENS,
    chunks,
    shared,
    worth_saving,
)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 9, 3, 9], [1, 2, 3, 4], 1),  # what is equal again behind a difference does not count
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2, 3], 3),
        ([4, 2], [1, 2], 0),
        ([], [1], 0),
    ],
)
def test_shared_beginnings(one: list[int], other: list[int], length: int) -> None:
    assert shared(np.array(one, np.int64), np.array(other, np.int64)) == length
    assert shared(np.array(other, np.int64), np.array(one, np.int64)) == length


@pytest.mark.parametrize(
    ("start", "end", "chunk", "last", "stops", "expected"),
    [
        (0, 3, 4, 1, (), [(0, 3)]),
        (0, 8, 4, 1, (), [(0, 4), (4, 8)]),
        (0, 9, 4, 1, (), [(0, 4), (4, 8), (8, 9)]),
        (0, 10, 4, 3, (), [(0, 4), (4, 7), (7, 10)]),  # the last one holds all logits
        (0, 6, 4, 4, (), [(0, 2), (2, 6)]),
        (5, 6, 4, 1, (), [(5, 6)]),
        (0, 10, 4, 1, (5,), [(0, 4), (4, 5), (5, 9), (9, 10)]),
        (0, 12, 4, 1, (4, 10), [(0, 4), (4, 8), (8, 10), (10, 12)]),
        (0, 20, 4, 3, (10,), [(0, 4), (4, 8), (8, 10), (10, 14), (14, 17), (17, 20)]),  # no logits at a stop
    ],
)
def test_chunks(
    start: int, end: int, chunk: int, last: int, stops: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    assert list(chunks(start, end, chunk, last, stops)) == expected


@pytest.mark.parametrize(
    ("start", "turn_end", "last", "stops", "system_end"),
    [
        (0, 180, 200, [64, 180], 64),  # the image ends 36 tokens behind the system's messages
        (0, 190, 200, [100, 190], 63),
        (64, 180, 200, [180], 64),
        (0, 180, 200, [100, 180], 0),
        (0, 163, 200, [100], 0),  # 63 tokens behind the copy in front of it
        (0, 164, 200, [100, 164], 0),
        (36, 180, 200, [100, 180], 0),
        (37, 180, 200, [180], 0),
        (100, 180, 200, [180], 0),
        (0, 180, 179, [100], 0),  # behind where the logits begin
        (0, 180, 180, [100, 180], 0),
        (0, 90, 200, [90], 0),  # a turn that ends in front of its last image
    ],
)
def test_states_are_saved_behind_the_system_the_last_image_and_the_turn(
    start: int, turn_end: int, last: int, stops: list[int], system_end: int
) -> None:
    spans = np.array([(2, 10), (30, 100)], np.int64)
    request: Any = SimpleNamespace(prompt=SimpleNamespace(image_spans=spans), turn_end=turn_end, system_end=system_end)
    assert SAVING_TOKENS == 64
    assert worth_saving(request, start, last) == stops


def test_states_are_saved_without_images() -> None:
    prompt = SimpleNamespace(image_spans=np.zeros((0, 2), np.int64))
    request: Any = SimpleNamespace(prompt=prompt, turn_end=70, system_end=0)
    assert worth_saving(request, 0, 100) == [70]
    assert worth_saving(request, 7, 100) == []
