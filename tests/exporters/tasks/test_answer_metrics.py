"""Metrics against their published definitions: values worked out by hand, and properties."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.exporters.tasks.answer_metrics import METRICS, Expected, edit_distance, named_option, score
from lensmith.exporters.tasks.open_answers import open_answer
from lensmith.targets.errors import InputError

words = st.text(alphabet="ab ", max_size=7)


@cache
def distance(first: str, second: str) -> int:
    """Levenshtein's distance as it is defined, by recursion."""
    if not first or not second:
        return len(first or second)
    if first[0] == second[0]:
        return distance(first[1:], second[1:])
    return 1 + min(distance(first[1:], second), distance(first, second[1:]), distance(first[1:], second[1:]))


@given(words, words)
def test_edit_distance_is_levenshteins(first: str, second: str) -> None:
    assert edit_distance(first, second) == distance(first, second)


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [
        ("Coca Cola", ("coca cola",), 1.0),
        ("  coca   COLA ", ("Coca Cola",), 1.0),
        ("coca cole", ("coca cola",), 1 - 1 / 9),
        ("coca", ("coca cola", "coca colas"), 0.0),  # 4 of 9 signs are alike
        ("ab", ("abcd",), 0.5),  # just a half counts
        ("abc", ("abcdefg",), 0.0),
        ("pepsi", ("coca cola", "pepsi co"), 1 - 3 / 8),  # the best of the right answers
        ("", ("a",), 0.0),
    ],
)
def test_anls(answer: str, right: tuple[str, ...], value: float) -> None:
    """1 - distance / length of the longer, and 0 below a half (Biten et al. 2019, equation 1)."""
    assert METRICS["ANLS"](answer, Expected(right)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [
        ("3.14", "3", 1),
        ("104.9", "100", 1),
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("14%", "0.14", 1),
        ("14%", "14", 0),
        ("14", "14%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("2019", "2018", 1),
        ("1,000", "1000", 0),
        ("nan", "5", 0),
        ("", "5", 0),
        (" 5 ", "5", 1),
    ],
)
def test_relaxed_accuracy(answer: str, right: str, value: float) -> None:
    """Numbers within 5 % of the gold answer, percentages as fractions, exact match for the rest, as for 0."""
    assert METRICS["relaxed accuracy"](answer, Expected((right,))) == value


def humans(*answers: tuple[str, int]) -> Expected:
    return Expected(tuple(answer for answer, count in answers for _ in range(count)))


@pytest.mark.parametrize(
    ("answer", "people", "value"),
    [
        ("yes", humans(("yes", 10)), Fraction(1)),
        ("no", humans(("yes", 10)), Fraction(0)),
        ("yes", humans(("yes", 4), ("no", 6)), Fraction(1)),
        ("yes", humans(("yes", 3), ("no", 7)), Fraction(9, 10)),  # 7 sets with all 3 of them, 3 with 2 of them
        ("yes", humans(("yes", 2), ("no", 8)), Fraction(6, 10)),
        ("yes", humans(("yes", 1), ("no", 9)), Fraction(3, 10)),
        ("Two.", humans(("2", 5), ("two", 5)), Fraction(1)),
        ("the red car", humans(("red car", 10)), Fraction(1)),
        ("dont know", humans(("don't know", 10)), Fraction(1)),
        ("100,978", humans(("100978", 10)), Fraction(1)),
        ("t-shirt", humans(("t shirt", 10)), Fraction(1)),
        ("2:50 pm", humans(("2:50 PM", 10)), Fraction(1)),
        ("2.5", humans(("25", 10)), Fraction(0)),  # a decimal point stays
        ("girl's", humans(("girls", 10)), Fraction(0)),  # an apostrophe, too
        ("couldntve", humans(("couldn't've", 10)), Fraction(1)),
        ("none", humans(("0", 10)), Fraction(1)),
        ("yes , it is", humans(("yes it is", 10)), Fraction(1)),
        ("were", humans(("we're", 10)), Fraction(0)),  # a word of its own
    ],
)
def test_vqa_score(answer: str, people: Expected, value: Fraction) -> None:
    """min(humans that said it / 3, 1) over all 10 choose 9 sets of humans; words as on visualqa.org."""
    assert METRICS["VQA score"](answer, people) == pytest.approx(float(value))


@given(st.integers(0, 10))
def test_vqa_score_is_the_mean_over_all_sets(count: int) -> None:
    people = humans(("yes", count), ("no", 10 - count))
    sets = [min(Fraction(nine.count("yes"), 3), Fraction(1)) for nine in combinations(people.answers, 9)]
    assert METRICS["VQA score"]("yes", people) == pytest.approx(float(sum(sets) / len(sets)))


OPTIONS = ("a lion", "a wolf", "an ox", "a lion cub")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("b", "B"),
        (" c).", "C"),
        ("it is b", None),
        ("The answer is B", "B"),
        ("B: a lion", "B"),
        ("**C**", "C"),
        ("(A) or B? It is (C), not B", "C"),
        ("A and then B", "B"),
        ("It shows a wolf.", "B"),
        ("A WOLF", "A"),
        ("an ox", "C"),
        ("the lion cub", None),
        ("E", None),
        ("BC", None),
        ("", None),
        ("nothing", None),
    ],
)
def test_the_option_that_is_named(answer: str, letter: str | None) -> None:
    """In brackets before alone, the last of several; words only where no letter is."""
    assert named_option(answer, OPTIONS) == letter
    assert METRICS["multiple choice"](answer, Expected(("B",), OPTIONS)) == float(letter == "B")


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [
        ("The answer is 24.", ("24",), 1),
        ("12 + 12 = 24", ("24",), 1),
        ("It is 24 or so", ("24.0",), 1),
        ("24.004", ("24",), 1),
        ("24.01", ("24",), 0),
        ("1,234", ("1234",), 1),
        ("1.2e3", ("1200",), 1),
        ("It is 24\nso 25", ("24",), 1),
        ("So the final answer is carbon dioxide", ("carbon dioxide",), 1),
        ("oxygen", ("carbon", "oxygen"), 1),
        ("carbon", ("carbon dioxide",), 0),
        ("It is a bus", ("a",), 1),
        ("It is grand", ("a",), 0),
        ("-5", ("5",), 0),
    ],
)
def test_open_answers(answer: str, right: tuple[str, ...], value: float) -> None:
    """A right text in the phrase behind "is", "=" and the like, or a right number among its numbers (MMMU)."""
    assert open_answer(answer, right) == value


@pytest.mark.parametrize(
    ("metric", "answer", "value"),
    [("exact match", " Lion\n", 1), ("exact match", "lion", 0), ("accuracy", "lion", 1), ("accuracy", "lions", 0)],
)
def test_matches_of_whole_answers(metric: str, answer: str, value: float) -> None:
    assert score(metric, answer, Expected(("Bear", "Lion"))) == value


@given(
    st.sampled_from(sorted(METRICS)),
    st.text(max_size=12),
    st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_any_answer_gets_a_degree(metric: str, answer: str, right: list[str]) -> None:
    assert 0 <= score(metric, answer, Expected(tuple(right), tuple(right))) <= 1


def test_an_unknown_metric_is_told() -> None:
    with pytest.raises(InputError, match="no metric 'ANLS2'; did you mean 'ANLS'"):
        score("ANLS2", "a", Expected(("a",)))


@pytest.mark.parametrize(
    ("right", "value"), [(("yes",), 1), (("no",), 0), (("yes", "yes"), 1), (("yes", "yes", "yes"), 1),
                         (("yes", "no"), 0.5), (("yes", "yes", "no"), 2 / 3)]
)  # fmt: skip
def test_a_few_people_can_agree(right: tuple[str, ...], value: float) -> None:
    """Three others cannot, where there are fewer."""
    assert score("VQA score", "yes", Expected(right)) == pytest.approx(value)
