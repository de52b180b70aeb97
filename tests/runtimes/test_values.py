"""Numbers, truth values and names that callers give: the least and the largest that are taken, and what is beyond."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.generation.options import GenerationOptions, with_options
from lensmith.runtimes.generation.sampling import SamplingOptions
from lensmith.runtimes.values import (
    finite,
    number,
    only,
    shown,
    truth,
    whole,
)
from lensmith.targets.errors import InputError

# A check, what it takes, and what it does not.
CHECKS: dict[str, tuple[Callable[[Any], Any], list[Any], list[Any]]] = {
    "whole": (lambda v: whole("x", v, 1, 3), [1, 3, np.int64(2)], [0, 4, True, 2.0, "2", None, np.float64(2)]),
    "at least": (lambda v: whole("x", v, 0), [0, (1 << 63) - 1], [-1, 1 << 63]),
    "number": (lambda v: number("x", v, 0, 1), [0, 1, 0.5, np.float32(1)], [-0.1, 1.1, math.nan, True, "1", None]),
    "above": (lambda v: number("x", v, 0, math.inf, above=True), [0.1, math.inf], [0, -1, math.nan]),
    "finite": (lambda v: finite("x", v), [1e-9, 5, np.float32(2)], [0, -1, math.inf, math.nan, True, "1"]),
    "truth": (lambda v: truth("x", v), [True, False, np.True_, np.False_], [1, 0, "yes", None]),
    "stop": (lambda v: GenerationOptions(stop=v).stop, [(), ("a",)], ["a", [""], [1], None]),
    "new tokens": (lambda v: GenerationOptions(max_new_tokens=v).max_new_tokens, [1, 1 << 24], [0, (1 << 24) + 1]),
}


@pytest.mark.parametrize("name", CHECKS)
def test_edges(name: str) -> None:
    check, right, wrong = CHECKS[name]
    assert [check(value) for value in right] == right
    for value in wrong:
        with pytest.raises(InputError, match="expected"):
            check(value)


def test_names_are_those_that_are_known() -> None:
    only({"threads": 1}, ("threads", "context"), "this")
    with pytest.raises(InputError, match="this has no 'thread'; did you mean 'threads'"):
        only({"thread": 1}, ("threads", "context"), "this")


def test_values_in_messages_are_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown([1, 2]) == "[1, 2]"
    assert shown("x" * 58) == f"'{'x' * 58}'"
    assert shown("x" * 59) == f"'{'x' * 59}..."


def test_none_is_an_option_that_is_not_given() -> None:
    choose = partial(with_options, GenerationOptions(max_new_tokens=7), generation_config={})
    assert choose({"max_new_tokens": None, "temperature": None, "seed": None}) == GenerationOptions(max_new_tokens=7)


def test_a_seed_alone_does_not_ask_for_sampling() -> None:
    """Of a greedy answer it would have no effect; with sampling it is the draw's."""
    sampled = GenerationOptions(sampling=SamplingOptions(do_sample=True, temperature=0.5))
    found = with_options(sampled, {"seed": 3}, {}).sampling
    assert (found.do_sample, found.temperature, found.seed) == (True, 0.5, 3)
    with pytest.raises(InputError, match="seed"):
        with_options(GenerationOptions(), {"seed": 3}, {})


@pytest.mark.parametrize("base", [{}, {"repetition_penalty": 1.2}, {"repetition_penalty": 1.2, "do_sample": True}])
def test_what_is_given_counts_over_the_penalty_of_the_options(base: dict[str, Any]) -> None:
    options = GenerationOptions(sampling=SamplingOptions(**base))
    for given in ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5, "do_sample": True, "seed": 1}):
        assert with_options(options, given, {"repetition_penalty": 1.3}).sampling.repetition_penalty == 1.5
    kept = with_options(options, {"do_sample": True}, {"repetition_penalty": 1.3, "temperature": 0.7}).sampling
    assert kept.repetition_penalty == base.get("repetition_penalty", 1.3)
