"""Events of answers as OpenAI's chat completions: whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runtimes.dialogue.events import BrokenCall, Event, Reasoning, Text, ToolCall, message_of
from ..runtimes.generation.answer import Answer


@dataclass
class AnswerSoFar:
    """One of the answers to a request, as far as it was read."""

    answer: Answer
    events: list[Event] = field(default_factory=list)
    told: int = 0  # tokens whose probabilities were sent

    def new_logprobs(self) -> dict[str, Any] | None:
        """Of the tokens that were not sent yet; None where they were not asked for."""
        found = logprobs_of(self.answer, self.told)
        self.told += len(found["content"]) if found is not None else 0
        return found


@dataclass(frozen=True)
class Envelope:
    """What all objects of one response have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, kind: str, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One object."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": [*choices], **more}


def delta(event: Event) -> dict[str, Any]:
    """What a chunk adds to the message."""
    if isinstance(event, Reasoning):
        return {"reasoning_content": event.text}
    if isinstance(event, ToolCall):
        return {"tool_calls": [{"index": event.index, **event.as_message_part()}]}
    assert isinstance(event, Text | BrokenCall)
    return {"content": event.text}


def chunk(envelope: Envelope, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A chunk of one of the answers."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    return envelope.of("chat.completion.chunk", [choice])


def completion(envelope: Envelope, made: Sequence[AnswerSoFar]) -> dict[str, Any]:
    """The whole response to answers that are done."""
    choices = [
        {
            "index": index,
            "message": {"refusal": None, **message_of(each.events)},
            "logprobs": each.new_logprobs(),
            "finish_reason": each.answer.openai_finish_reason,
        }
        for index, each in enumerate(made)
    ]
    return envelope.of("chat.completion", choices, usage=usage(made))


def logprobs_of(answer: Answer, begin: int) -> dict[str, Any] | None:
    """Of the tokens from `begin` on; None where they were not asked for."""
    found = answer.logprobs
    return None if found is None else {"content": [token.as_openai() for token in found[begin:]], "refusal": None}


def usage(made: Sequence[AnswerSoFar]) -> dict[str, Any]:
    """The tokens of all answers to one prompt."""
    timings = [each.answer.timings for each in made]
    prompt, new = timings[0].prompt_tokens, sum(each.new_tokens for each in timings)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": timings[0].reused_tokens},
    }
