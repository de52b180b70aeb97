"""Drafts of an answer that is known."""

from __future__ import annotations

from lensmith.runtimes.engines.contract import Ints
from lensmith.runtimes.generation.ngram_drafts import MOST_DRAFTS, NgramDrafts


class Foreseeing(NgramDrafts):
    """Drafts the `answer` behind a prompt of `begin` tokens, with a wrong token after each `right` ones that are."""

    def __init__(self, begin: int, answer: list[int], right: int, most: int = MOST_DRAFTS) -> None:
        super().__init__()
        self._begin, self._answer, self._right, self._at_once = begin, answer, right, most

    def propose(self, history: Ints, room: int) -> list[int]:
        at = len(history) - self._begin
        drafts = self._answer[at : at + min(room, self._at_once)]
        wrong = [index % (self._right + 1) == self._right for index in range(len(drafts))]
        return [token ^ 1 if missed else token for token, missed in zip(drafts, wrong, strict=True)]
