"""Answers as OpenAI's chat completions: whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from typing import Any

from ...runtimes.dialogue.events import BrokenCall, Event, Reasoning, Text, ToolCall, message_of
from ..answer_writer import AnswerSoFar, Writer, bare_event, used
from ..served import Served
from ..server_errors import Refusal
from .chat_schema import ChatRequest
from .openai_errors import openai_error

DONE = b"data: [DONE]\n\n"


class ChatWriter(Writer):
    """Writes `chat.completion` and `chat.completion.chunk`."""

    def __init__(self, served: Served, request: ChatRequest, _: ChatRequest) -> None:
        super().__init__(request.n or 1)
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def add(self, event: Event) -> bytes:
        return self._chunk(delta(event), logprobs=logprobs_of(self.latest, self.latest.lengths[-1]))

    def end(self) -> bytes:
        reason = self.latest.answer.openai_finish_reason
        return self._chunk({}, logprobs=logprobs_of(self.latest), finish_reason=reason)

    def close(self) -> bytes:
        last = {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": openai_usage(self)}
        return (bare_event(last) if self.with_usage else b"") + DONE

    def fail(self, refusal: Refusal) -> bytes:
        return bare_event(openai_error(refusal)) + DONE

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"refusal": None, **message_of(each.events)},
                "logprobs": logprobs_of(each),
                "finish_reason": each.answer.openai_finish_reason,
            }
            for index, each in enumerate(self.made)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": openai_usage(self)}

    def _chunk(self, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": len(self.made) - 1, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return bare_event({**self.head, "object": "chat.completion.chunk", "choices": [choice]})


def delta(event: Event) -> dict[str, Any]:
    """What a chunk adds to the message."""
    if isinstance(event, Reasoning):
        return {"reasoning_content": event.text}
    if isinstance(event, ToolCall):
        return {"tool_calls": [{"index": event.index, **event.as_message_part()}]}
    assert isinstance(event, Text | BrokenCall)
    return {"content": event.text}


def logprobs_of(answer: AnswerSoFar, length: int | None = None) -> dict[str, Any] | None:
    """Of the tokens that were not sent yet, up to a length; None where they were not asked for."""
    new = answer.new_logprobs(length)
    return None if new is None else {"content": [token.as_openai() for token in new], "refusal": None}


def openai_usage(writer: Writer) -> dict[str, Any]:
    """The tokens of all answers to a request."""
    tokens = used(writer.made, writer.each)
    return {
        "prompt_tokens": tokens["prompt"],
        "completion_tokens": tokens["new"],
        "total_tokens": tokens["prompt"] + tokens["new"],
        "prompt_tokens_details": {"cached_tokens": tokens["cached"]},
    }
