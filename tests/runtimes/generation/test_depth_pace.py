"""The number of guesses follows how many are right at each depth."""

from __future__ import annotations

import numpy as np
import pytest
from lensmith.runtimes.generation.depth_pace import COST, DepthPace
from lensmith.runtimes.generation.draft_pace import LONGEST_PAUSE

STEPS = 600


def counts(shares: list[float], seed: int = 0) -> list[int]:
    """Those of steps whose drafts are right by chance, with a share for each depth."""
    pace, random, made = DepthPace(len(shares)), np.random.default_rng(seed), list[int]()
    for _ in range(STEPS):
        made.append(pace.next_count())
        right = [random.random() < share for share in shares[: made[-1]]]
        if right:
            pace.learn(len(right), (*right, False).index(False))
    return made


def worth(shares: list[float], count: int) -> float:
    tokens = 1 + sum(np.prod(shares[:depth]) for depth in range(1, count + 1))
    return float(tokens / (1 + COST * count))


@pytest.mark.parametrize(
    "shares", [[1.0, 0.3, 0.2, 0.2], [1.0, 0.8, 0.75, 0.65], [0.95, 0.95, 0.95, 0.95], [0.6, 0.1, 0.9, 0.9]]
)
def test_the_best_number_is_taken_nearly_always(shares: list[float]) -> None:
    best = max(worth(shares, count) for count in range(5))
    found = [worth(shares, count) for count in counts(shares)[50:]]
    assert sum(found) / len(found) > 0.93 * best


def test_drafts_that_are_never_right_cost_few_steps() -> None:
    made = counts([0.0, 0.0, 0.0, 0.0])
    assert made[0] == 2
    assert sum(made[:8]) <= 10
    assert STEPS / (LONGEST_PAUSE + 2) - 4 < sum(count > 0 for count in made[30:]) < STEPS / LONGEST_PAUSE + 6


def test_it_comes_back_to_drafts_that_turn_right() -> None:
    pace = DepthPace(4)
    for _ in range(300):
        if count := pace.next_count():
            pace.learn(count, 0)
    steps = 0
    while (count := pace.next_count()) < 4:
        steps += 1
        if count:
            pace.learn(count, count)
    assert steps < 2 * LONGEST_PAUSE + 80
