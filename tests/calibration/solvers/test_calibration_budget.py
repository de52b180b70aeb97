"""Mixed precision against brute force."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.calibration.solvers.budget import Option, choose

options = st.builds(Option, st.integers(1, 60), st.integers(0, 60).map(float))
tensors = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=5)


def total(rows: list[list[Option]], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    picked = [row[index] for row, index in zip(rows, chosen, strict=True)]
    return sum(option.bytes for option in picked), sum(option.cost for option in picked)


def every(rows: list[list[Option]]) -> list[tuple[int, float]]:
    return [total(rows, chosen) for chosen in product(*(range(len(row)) for row in rows))]


@given(tensors, st.integers(0, 300))
def test_least_cost_within_a_size(rows: list[list[Option]], limit: int) -> None:
    fitting = [cost for size, cost in every(rows) if size <= limit]
    if not fitting:
        with pytest.raises(ValueError, match="bytes"):
            choose(rows, max_bytes=limit, max_cost=None)
        return
    size, cost = total(rows, choose(rows, max_bytes=limit, max_cost=None))
    assert size <= limit
    # The relaxed optimum is a bound from below, and less than one step of one tensor away.
    step = max(max(option.cost for option in row) - min(option.cost for option in row) for row in rows)
    assert min(fitting) <= cost <= min(fitting) + step


@given(tensors, st.integers(0, 300))
def test_least_size_within_a_cost(rows: list[list[Option]], limit: int) -> None:
    fitting = [size for size, cost in every(rows) if cost <= limit]
    if not fitting:
        with pytest.raises(ValueError, match="cost"):
            choose(rows, max_bytes=None, max_cost=limit)
        return
    size, cost = total(rows, choose(rows, max_bytes=None, max_cost=limit))
    assert cost <= limit
    step = max(max(option.bytes for option in row) - min(option.bytes for option in row) for row in rows)
    assert min(fitting) <= size <= min(fitting) + step


@given(st.lists(options, min_size=1, max_size=6), st.integers(0, 60))
def test_one_tensor_gets_its_best(row: list[Option], limit: int) -> None:
    fitting = [option.cost for option in row if option.bytes <= limit]
    if fitting:
        assert row[choose([row], max_bytes=limit, max_cost=None)[0]].cost == min(fitting)


@given(tensors)
def test_without_limits_cost_alone_counts(rows: list[list[Option]]) -> None:
    assert total(rows, choose(rows, max_bytes=None, max_cost=None))[1] == min(cost for _, cost in every(rows))


@given(tensors, st.integers(0, 300), st.integers(0, 300))
def test_both_limits_hold_or_it_says_so(rows: list[list[Option]], max_bytes: int, max_cost: int) -> None:
    try:
        size, cost = total(rows, choose(rows, max_bytes=max_bytes, max_cost=max_cost))
    except ValueError:
        return
    assert size <= max_bytes
    assert cost <= max_cost


def test_sensitive_tensors_get_the_bits() -> None:
    plain = [Option(2, 4.0), Option(4, 1.0), Option(8, 0.1)]
    sensitive = [Option(option.bytes, option.cost * 50) for option in plain]
    assert choose([plain, sensitive, plain], max_bytes=14, max_cost=None) == [1, 2, 0]
    with pytest.raises(ValueError, match="cost of 13 at best"):
        choose([plain, sensitive, plain], max_bytes=12, max_cost=5.0)
