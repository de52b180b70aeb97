"""Words as the evaluation of VQA writes them: no punctuation, no articles, numbers as digits, contractions whole.

The rules are those of visualqa.org/evaluation.html.
"""

from __future__ import annotations

import re
from itertools import product

ARTICLES = ("a", "an", "the")
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(value) for value, word in enumerate(DIGITS.split())} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # all but apostrophes, colons and periods
NUMBER_WITH_COMMA = re.compile(r"\d,+\d")
PERIOD = re.compile(r"\.(?!\d)")  # that is no decimal point
# Whole contractions; one that lacks an apostrophe is meant unless that is a word of its own ("were", "its").
CONTRACTIONS = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't
    oughtn't shan't shouldn't wasn't weren't won't wouldn't could've might've must've not've should've would've
    couldn't've hadn't've mightn't've shouldn't've wouldn't've he's how'd how'll how's it'd it'll that's there'd
    there're there's they'd they'll they're they've what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's we've you'd you'll you're you've y'all y'all'll
    y'all'd've he'd he'd've it'd've she'd've that'd've there'd've they'd've we'd've who'd've you'd've someone'd
    someone'd've someone'll someone's something'd something'd've something'll somebody'll somebody's ma'am
    o'clock 'twas
"""


def _lacking(word: str) -> set[str]:
    """A word without one or more of its apostrophes."""
    first, *others = word.split("'")
    ways = product(("", "'"), repeat=len(others))
    made = ("".join([first, *(f"{sign}{part}" for sign, part in zip(way, others, strict=True))]) for way in ways)
    return {each for each in made if each != word}


WHOLE = {lacking: word for word in CONTRACTIONS.split() for lacking in _lacking(word)}


def vqa_words(text: str) -> str:
    """An answer, or what people answered, in the form in which the two are compared."""
    words = (NUMBERS.get(word, word) for word in _without_punctuation(" ".join(text.split())).lower().split())
    return " ".join(WHOLE.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A sign between words becomes a space; beside a space, or in a text with 1,000 in it, it goes."""
    goes = bool(NUMBER_WITH_COMMA.search(text))
    kept = text
    for sign in PUNCTUATION:
        kept = kept.replace(sign, "" if goes or f"{sign} " in text or f" {sign}" in text else " ")
    return PERIOD.sub("", kept)
