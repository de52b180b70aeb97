"""Drafts of an answer that is known, a set share of them right, as those of a text or of a head would be on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from ..engines.contract import Ints
from ..generation.conversation import Conversation
from ..generation.drafted_steps import DraftSource
from ..generation.drafting import Choice, DraftHead, likeliest
from ..generation.following_head import FollowingHead
from ..generation.model import Model
from ..generation.mtp_drafts import MtpDrafts
from ..generation.ngram_drafts import NgramDrafts
from ..prompt.requests import Request

SHARE = 0.7  # of right drafts, where those in front of them are: what a draft head begins with, too
# What guesses in a conversation, for a request with the tokens that answer it and the most drafts of a step.
Guesses: TypeAlias = Callable[[Model, Conversation, Request, Sequence[int], int], list[DraftSource]]


class KnownAnswer:
    """The tokens behind a prompt of `begin` tokens; the same of them are drafted wrong each time."""

    def __init__(self, begin: int, ids: Sequence[int]) -> None:
        self._begin, self._ids = begin, ids
        self._right = np.random.default_rng(0).random(len(ids)) < SHARE

    def behind(self, history: Ints, count: int) -> list[int]:
        """Drafts of the `count` tokens behind `history` [n]."""
        places = slice(len(history) - self._begin, len(history) - self._begin + count)
        known = zip(self._ids[places], self._right[places], strict=True)
        return [token if right else token ^ 1 for token, right in known]


class RehearsedText(NgramDrafts):
    """Look-up that always finds something: an answer that is known."""

    def __init__(self, answer: KnownAnswer, never: int, most: int) -> None:
        super().__init__({never}, most=most)
        self._answer = answer

    def look_up(self, history: Ints, count: int) -> Iterable[int]:
        """As of NgramDrafts."""
        super().look_up(history, count)  # for its time
        return self._answer.behind(history, count)


class RehearsedHead(FollowingHead):
    """A draft head that takes its time and then guesses an answer that is known."""

    def __init__(self, head: DraftHead, answer: KnownAnswer) -> None:
        super().__init__(head)
        self._answer = answer

    def guess(self, history: Ints, offset: int, count: int, choose: Choice = likeliest) -> list[int]:
        """As of FollowingHead."""
        made = super().guess(history, offset, count, choose)
        return self._answer.behind(history, len(made))


def nothing(_: Model, __: Conversation, ___: Request, ____: Sequence[int], _____: int) -> list[DraftSource]:
    """No drafts."""
    return []


def of_text(model: Model, _: Conversation, request: Request, ids: Sequence[int], most: int) -> list[DraftSource]:
    """Drafts as of the text so far."""
    answer = KnownAnswer(len(request.prompt), ids)
    return [RehearsedText(answer, model.prompts.image_token_id, most)] if most else []


def of_head(
    model: Model, conversation: Conversation, request: Request, ids: Sequence[int], most: int
) -> list[DraftSource]:
    """Drafts as of the draft head, which goes along with the conversation from now on."""
    graph = model.draft_head(request, wished=bool(most))
    if graph is None:
        return []
    head = RehearsedHead(DraftHead(graph), KnownAnswer(len(request.prompt), ids))
    conversation.head = head
    offset = request.next_position - len(request.prompt)
    return [MtpDrafts(head, offset, {model.prompts.image_token_id}, most=most)]
