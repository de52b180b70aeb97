"""Conditions on figures: what they mean, and that nothing else is read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.exporters.reports.gate import FIGURES, Gate
from lensmith.targets.errors import CheckFailed, InputError

FOUND = {"decode_tps": 8.0, "accuracy_drop": 0.5, "size_mb": 100.0, "memory_mb": 400.0}


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("decode_tps<10 or accuracy_drop>1", True),
        ("decode_tps<10 and accuracy_drop>1", False),
        ("not decode_tps < 10", False),
        ("5 < decode_tps <= 8", True),
        ("8 < decode_tps < 9", False),
        ("memory_mb > 3 * size_mb + 50", True),
        ("memory_mb / size_mb == 4", True),
        ("size_mb - memory_mb >= -300", True),
        ("accuracy_drop != .5", False),
        ("decode_tps < 1e1 and (size_mb > 1000 or not size_mb > 1000)", True),
        ("size_mb / (decode_tps - 8) > 0", False),  # divided by nothing
    ],
)
def test_conditions_mean_what_they_say(text: str, true: bool) -> None:
    gate = Gate.parse(text)
    if true:
        with pytest.raises(CheckFailed, match="is true of int4"):
            gate.check({"int4": FOUND})
    else:
        gate.check({"int4": FOUND})


@given(st.floats(0, 100), st.floats(0, 100), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.booleans())
def test_a_comparison_is_pythons(first: float, second: float, sign: str, negated: bool) -> None:
    truth = eval(f"{first!r} {sign} {second!r}")
    gate = Gate.parse(f"{'not ' if negated else ''}decode_tps {sign} {second!r}")
    try:
        gate.check({"x": {"decode_tps": first}})
        failed = False
    except CheckFailed:
        failed = True
    assert failed == (truth != negated)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode_tp < 3", "no figure 'decode_tp'; did you mean 'decode_tps'.*all: size_mb, load_ms"),
        ("", "cannot be read; expected comparisons"),
        ("decode_tps <", "cannot be read"),
        ("decode_tps = 3", "cannot be read"),
        ("decode_tps", "has 'decode_tps'; expected comparisons"),
        ("3", "has '3'"),
        ("True", "has 'True'"),
        ("decode_tps < True", "has 'True'"),
        ("decode_tps < '3'", "has \"'3'\""),
        ("decode_tps in (1, 2)", "expected comparisons"),
        ("decode_tps < abs(3)", r"has 'abs\(3\)'"),
        ("__import__('os').system('x') < 3", "has .*; expected comparisons"),
        ("decode_tps < 2 ** 9999999", "expected comparisons"),
        ("(lambda: 1)() < 3", "expected comparisons"),
        ("decode_tps.x < 3", "expected comparisons"),
        ("[decode_tps] < 3", "expected comparisons"),
        ("x := 3", "cannot be read"),
        ("decode_tps < 1e999", "expected comparisons"),
        ("decode_tps < " + "9" * 400, "expected comparisons"),
        ("decode_tps < 3j", "expected comparisons"),
        ("decode_tps < 3 if True else 0", "expected comparisons"),
        ("(" * 300 + "decode_tps < 3" + ")" * 300, "cannot be read"),
        ("decode_tps < 3" + " or decode_tps < 3" * 100, "signs, more"),
        ("decode_tps < 3 \x00", "cannot be read"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate.parse(text)


@given(st.text(alphabet="decode_tps<>=()+-*/ 0123.norad'[]:,", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        assert set(Gate.parse(text).names) <= set(FIGURES)


def test_what_was_not_measured_is_told() -> None:
    with pytest.raises(InputError, match="asks for accuracy, which int4 has not; it needs --tasks"):
        Gate.parse("accuracy < 90").check({"int4": FOUND})


def test_only_those_that_fail_are_named() -> None:
    with pytest.raises(CheckFailed, match=r"'size_mb > 50' is true of b \(size_mb 60\); c \(size_mb 70\)$"):
        Gate.parse("size_mb > 50").check({name: {"size_mb": size} for name, size in (("a", 50), ("b", 60), ("c", 70))})


def test_a_figure_that_is_not_a_number_fails() -> None:
    """No comparison is true of it, so that a broken build would pass."""
    with pytest.raises(CheckFailed, match="asks for kl, which is not a number of int4"):
        Gate.parse("kl > 0.1").check({"int4": {"kl": float("nan")}})


def test_the_deepest_condition_is_read() -> None:
    Gate.parse("kl<" + "-" * 496 + "1").check({"int4": {"kl": 1.0}})
    with pytest.raises(InputError, match="501 signs, more than 500"):
        Gate.parse("kl<" + "-" * 497 + "1")
