"""Answers in a model's own words, as the evaluation of MMMU reads them: what is said last, and its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

HINTS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # the answer comes behind
NUMBER = re.compile(r"""
    -?\b\d{1,3}(?:,\d{3})+\b                                     # 12,345
    | -?\d+(?:\.\d+)?[eE][+-]?\d+                                # 1.2e-3
    | -?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])        # 12.5
""", re.VERBOSE)  # fmt: skip
SIGNS = set(":,.!?;'")  # that are no answer by themselves


def open_answer(answer: str, right: tuple[str, ...]) -> float:
    """1 where a right text is in what was said, or a right number among its numbers (Yue et al. 2024)."""
    wanted = {form for text in right for form in _forms(text)}
    said = {form for phrase in _phrases(answer) for part in (phrase, *NUMBER.findall(phrase)) for form in _forms(part)}
    texts = [form for form in said if isinstance(form, str)]
    within = any(form in text for form in wanted if isinstance(form, str) for text in texts)
    return float(within or any(form in said for form in wanted if isinstance(form, float)))


def _phrases(answer: str) -> list[str]:
    """Of each line the shortest end behind a hint; the whole answer where no line has one."""
    lines = answer.strip().strip(".").lower().split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        hints = (*HINTS, "=") if number == len(lines) else HINTS
        ends = [line.split(hint)[-1].strip() for hint in hints if hint in line]
        if ends and (end := min(ends, key=len)) and end not in SIGNS:
            found.append(end)
    return found or [answer]


def _forms(text: str) -> Iterator[str | float]:
    """A number as a number; other texts in small letters, one letter alone only beside a space."""
    text = text.strip()
    try:
        yield round(float(text.replace(",", "")), 2)
    except ValueError:
        small = text.lower()
        yield from (f" {small}", f"{small} ") if len(small) == 1 else (small,)
