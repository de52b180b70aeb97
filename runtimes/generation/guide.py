"""What decides on tokens besides the model: the end of its thoughts, and the form of its answer or of calls in it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...targets.errors import InputError
from ..dialogue.dialogue_parser import THINK, THINK_END, DialogueParser
from ..prompt.prompt_builder import PromptBuilder
from .call_watch import CallWatch
from .constraints import Form
from .sampling import Logits, Sampler, TokenIds
from .streaming import TextStream


class Guide:
    """Follows the tokens of one answer."""

    def __init__(
        self,
        prompts: PromptBuilder,
        *,
        thinking: bool | None,
        budget: int | None = None,
        form: Form | None = None,
        calls: CallWatch | None = None,
        ends: Iterable[int] = (),
    ) -> None:
        """`thinking`: whether the prompt ends within thoughts; None where the model may begin some itself.

        After `budget` tokens of thoughts their end is forced. What comes behind them has the `form`, or is free but for
        the `calls` in it; the tokens `ends` end an answer, but no thoughts that come before a form.
        """
        self._stream = TextStream(prompts.tokenizer, kept=prompts.tags)
        self._parser = DialogueParser(prompts.speech, thinking=thinking is True)
        self._tokenizer, self._budget, self._form = prompts.tokenizer, budget, form
        self._calls, self._ends = calls, [*ends]
        self._spent, self._latest = 0, ""
        self._forced, self._given = list[int](), False  # tokens that must come, and whether the latest was one
        opens = prompts.tokenizer.token_to_id(THINK) if thinking is None and prompts.speech.reasoning else None
        self._opening = opens  # the token that begins thoughts, while they may still begin

    def choose(self, sampler: Sampler, logits: Logits, history: TokenIds) -> int:
        """The next token: the only one that may come, or the sampler's of those that may."""
        forced = self._next_forced()
        token = sampler(self._allowed(logits), history) if forced is None else forced
        self._follow(token)
        return token

    @property
    def complete(self) -> bool:
        """Whether the answer has the form and nothing may follow."""
        return self._form is not None and self._form.complete

    def _next_forced(self) -> int | None:
        """The token that must come next, where there is no choice."""
        if not self._forced and self._parser.thinking and self._budget is not None and self._spent >= self._budget:
            self._say(f"\n{THINK_END}\n\n")  # as chat templates write it
        self._given = bool(self._forced)
        return self._forced.pop(0) if self._given else None

    def _allowed(self, logits: Logits) -> Logits:
        """Logits [vocab] of the tokens that may come next, minus infinity for all others."""
        if self._form is None:
            call = None if self._calls is None else self._calls.form
            return logits if call is None else call.allowed(logits)
        if self._parser.thinking:
            scores = logits.copy()
            scores[self._ends] = -np.inf
            return scores
        scores = self._form.allowed(logits)
        if self._opening is not None:
            scores[self._opening] = logits[self._opening]
        return scores

    def _follow(self, token: int) -> None:
        """Follow one more token."""
        before = self._parser.thinking
        self._spent += before
        text = self._stream.push(token)
        self._parser.push(text)
        self._latest = (self._latest + text)[-len(THINK_END) :]
        self._opening = None
        if self._calls is not None and not before and not self._parser.thinking:
            self._calls.push(token, text)
        if self._form is None or self._given or self._parser.thinking:
            return
        if not before:
            self._form.push(token)
        elif self._latest == THINK_END:
            self._say("\n\n")

    def _say(self, text: str) -> None:
        self._forced += self._tokenizer.encode(text, add_special_tokens=False).ids


def open_guide(
    prompts: PromptBuilder,
    thinking: bool | None,
    budget: int | None,
    form: Form | None,
    ends: Iterable[int],
    calls: CallWatch | None = None,
) -> Guide | None:
    """A guide for one answer, or None where the model is free; InputError for a budget without thoughts."""
    if budget is not None and not prompts.speech.reasoning:
        raise InputError(f"thinking_budget is {budget}, which has no effect: the chat template of this bundle knows no "
                         "thoughts; leave it out")  # fmt: skip
    if budget is None and form is None and calls is None:
        return None
    return Guide(prompts, thinking=thinking, budget=budget, form=form, calls=calls, ends=ends)
