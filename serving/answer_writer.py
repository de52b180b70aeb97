"""What writes the response to a request in the words of its API: whole, or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runtimes.dialogue.events import Event, Reasoning
from ..runtimes.generation.answer import Answer
from ..runtimes.generation.logprobs import TokenLogprob
from .server_errors import Refusal


@dataclass
class AnswerSoFar:
    """One of the answers to a request, as far as it was read."""

    answer: Answer
    events: list[Event] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # in tokens, at each of the events
    thought: int = 0  # tokens up to the latest piece of its thoughts
    _told: int = 0  # tokens whose probabilities were sent

    def add(self, event: Event, length: int) -> None:
        """One more event, when the answer had so many tokens."""
        self.events.append(event)
        self.lengths.append(length)
        if isinstance(event, Reasoning):
            self.thought = length

    def new_logprobs(self, length: int | None = None) -> list[TokenLogprob] | None:
        """Of the tokens that were not sent yet, up to a length; None where they were not asked for."""
        found = self.answer.logprobs
        if found is None:
            return None
        new = found[self._told : length]
        self._told += len(new)
        return new


class Writer:
    """Is told what happens, in its order, and says what to send of it; `whole` is asked in the end instead."""

    def __init__(self, each: int = 1) -> None:
        """`each`: how many answers there are to each prompt."""
        self.each, self.made = each, list[AnswerSoFar]()

    @property
    def latest(self) -> AnswerSoFar:
        """The answer that is being made."""
        return self.made[-1]

    def begin(self) -> bytes:
        """An answer begins."""
        return b""

    def add(self, event: Event) -> bytes:
        """It goes on."""
        raise NotImplementedError

    def end(self) -> bytes:
        """It ends."""
        return b""

    def close(self) -> bytes:
        """It was the last one."""
        return b""

    def fail(self, refusal: Refusal) -> bytes:
        """Nothing more comes."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        """The response as one object."""
        raise NotImplementedError


def as_json(data: Any) -> bytes:
    """As it is sent; escaped where a client's own words hold halves of surrogates, which no UTF-8 can say."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def named_event(name: str, data: Any) -> bytes:
    """A server-sent event with a name."""
    return f"event: {name}\n".encode() + bare_event(data)


def bare_event(data: Any) -> bytes:
    """A server-sent event without."""
    return b"data: " + as_json(data) + b"\n\n"


def used(made: Sequence[AnswerSoFar], each: int = 1) -> dict[str, int]:
    """Tokens of `made` answers, of which `each` have one prompt: of the prompts, of these cached, and new ones."""
    timings = [one.answer.timings for one in made]
    return {
        "prompt": sum(one.prompt_tokens for one in timings[::each]),
        "cached": sum(one.reused_tokens for one in timings[::each]),
        "new": sum(one.new_tokens for one in timings),
    }
