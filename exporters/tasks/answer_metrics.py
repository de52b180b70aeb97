"""How right an answer is, from 0 to 1, by the metric of its benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase

from ...targets.errors import InputError, closest
from .open_answers import open_answer
from .vqa_words import vqa_words

MOST_CHANGE = 0.05  # of a number that relaxed accuracy takes
LEAST_ANLS = 0.5
HUMANS = 3  # who must have given an answer for it to be all right


@dataclass(frozen=True)
class Expected:
    """The right answers, any of which will do, and the options of a multiple choice, of which one is named."""

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()


def exact_match(answer: str, expected: Expected) -> float:
    """1 for the same text, spaces around it aside."""
    return float(any(answer.strip() == right.strip() for right in expected.answers))


def accuracy(answer: str, expected: Expected) -> float:
    """1 for the same text in any case, as GQA and OCR-VQA count."""
    return float(any(answer.strip().lower() == right.strip().lower() for right in expected.answers))


def anls(answer: str, expected: Expected) -> float:
    """Average normalized Levenshtein similarity of one sample (Biten et al. 2019); below a half it is 0.

    A similarity of just a half counts, as in DocVQA's own evaluation and in both toolkits.
    """
    similarity = max(_similarity(answer, right) for right in expected.answers)
    return similarity if similarity >= LEAST_ANLS else 0.0


def _similarity(answer: str, right: str) -> float:
    first, second = (" ".join(text.lower().split()) for text in (answer, right))
    longest = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longest if longest else 1.0


def edit_distance(first: str, second: str) -> int:
    """Least number of signs to insert, delete or replace."""
    row = list(range(len(second) + 1))
    for index, sign in enumerate(first):
        before, row = row, [index + 1]
        for place, other in enumerate(second):
            row.append(min(before[place] + (sign != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]


def relaxed_accuracy(answer: str, expected: Expected) -> float:
    """1 for a number within 5 % of the right one, or else for the same text (Masry et al. 2022, section 5.1)."""
    return float(any(_relaxed(answer.strip(), right.strip()) for right in expected.answers))


def _relaxed(answer: str, right: str) -> bool:
    found, wanted = _number(answer), _number(right)
    if found is not None and wanted:
        return abs(found - wanted) <= MOST_CHANGE * abs(wanted)
    return answer.lower() == right.lower()


def _number(text: str) -> float | None:
    """A number or a percentage, which is a hundredth."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def multiple_choice(answer: str, expected: Expected) -> float:
    """1 where the letter of the right option is named, see `named_option`."""
    return float(named_option(answer, expected.options) in expected.answers)


def named_option(answer: str, options: tuple[str, ...]) -> str | None:
    """The letter of the option that an answer names; None where it names none.

    A letter in brackets or else alone, the last one where there are several, as in MMMU's evaluation; without letters
    the one option whose words are in the answer, as in VLMEvalKit. MMMU's own script guesses where this gives None.
    A small letter counts where it is the whole answer.
    """
    letters = ascii_uppercase[: len(options)]
    if len(bare := re.sub(r"\W", "", answer).upper()) == 1 and bare in letters:
        return bare
    for pattern in (rf"\(([{letters}])\)", rf"(?<!\w)([{letters}])(?!\w)"):
        if found := re.findall(pattern, answer):
            return str(found[-1])
    said = answer.lower()
    named = [letter for letter, option in zip(letters, options, strict=True) if option and option.lower() in said]
    return named[0] if len(named) == 1 else None


def vqa_score(answer: str, expected: Expected) -> float:
    """min(people who gave this answer / 3, 1), averaged over all sets that lack one of them (Antol et al. 2015).

    Of fewer than four people, all of the others must have given it; of one alone, that one.
    """
    said = vqa_words(answer)
    agree = [vqa_words(right) == said for right in expected.answers]
    if len(agree) == 1:
        return float(agree[0])
    enough = min(HUMANS, len(agree) - 1)
    return sum(min((sum(agree) - own) / enough, 1.0) for own in agree) / len(agree)


METRICS: Mapping[str, Callable[[str, Expected], float]] = {
    "exact match": exact_match,
    "accuracy": accuracy,
    "ANLS": anls,
    "relaxed accuracy": relaxed_accuracy,
    "multiple choice": multiple_choice,
    "open answer": lambda answer, expected: open_answer(answer, expected.answers),
    "VQA score": vqa_score,
}


def score(metric: str, answer: str, expected: Expected) -> float:
    """How right an answer is; InputError for a metric that is not known."""
    if metric not in METRICS:
        raise InputError(f"there is no metric {metric!r}; {closest(metric, METRICS)}")
    return METRICS[metric](answer, expected)
