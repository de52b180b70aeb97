"""Drafts of an answer that is known."""

from __future__ import annotations

import numpy as np
from lensmith.runtimes.engines.contract import Ints
from lensmith.runtimes.generation.drafting import Choice
from lensmith.runtimes.generation.following_head import FollowingHead
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


class ByChance(NgramDrafts):
    """So many drafts of the `answer` behind a prompt of `begin` tokens, each of them right by chance."""

    def __init__(self, begin: int, answer: list[int], share: float, most: int) -> None:
        super().__init__()
        self._begin, self._answer, self._share, self._at_once = begin, answer, share, most
        self._random = np.random.default_rng(0)

    def propose(self, history: Ints, room: int) -> list[int]:
        at = len(history) - self._begin
        return _some_right(self._random, self._answer[at : at + min(room, self._at_once)], self._share)


class ForcedHead:
    """A draft head that takes its time, and whose guesses are then right by chance: each with the same share."""

    def __init__(self, head: FollowingHead, begin: int, answer: list[int], share: float) -> None:
        """`answer`: behind a prompt of `begin` tokens."""
        self._head, self._begin, self._answer, self._share = head, begin, answer, share
        self._random = np.random.default_rng(0)

    @property
    def waiting(self) -> int:
        """As of FollowingHead."""
        return self._head.waiting

    def catch_up(self, history: Ints, offset: int) -> None:
        """As of FollowingHead."""
        self._head.catch_up(history, offset)

    def guess(self, history: Ints, offset: int, count: int, choose: Choice) -> list[int]:
        """As of FollowingHead, but for what is guessed."""
        at = len(history) - self._begin
        made = self._head.guess(history, offset, count, choose)
        return _some_right(self._random, self._answer[at : at + len(made)], self._share)


def _some_right(random: np.random.Generator, tokens: list[int], share: float) -> list[int]:
    right = random.random(len(tokens)) < share
    return [token if hit else token ^ 1 for token, hit in zip(tokens, right, strict=True)]
