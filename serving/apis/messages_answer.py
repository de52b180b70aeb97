"""Answers as Anthropic's messages: an object with blocks, or the events in which it grows."""

from __future__ import annotations

import json
import uuid
from typing import Any

from ...runtimes.dialogue.events import BrokenCall, Event, Reasoning, Text, ToolCall, merged
from ..answer_writer import Writer, named_event, used
from ..served import Served
from ..server_errors import Refusal
from .chat_schema import ChatRequest
from .messages_schema import MessagesRequest

ERRORS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
          429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}  # fmt: skip
REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
PIECES = {"thinking": "thinking_delta", "text": "text_delta"}


def anthropic_error(refusal: Refusal) -> dict[str, Any]:
    """The body of a response that refuses."""
    usual = "api_error" if refusal.status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": ERRORS.get(refusal.status, usual), "message": refusal.message}}


class MessagesWriter(Writer):
    """Writes `message` objects and the events of their blocks."""

    def __init__(self, served: Served, _: MessagesRequest, __: ChatRequest) -> None:
        super().__init__()
        self.head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": served.name}
        self.open = ""  # the kind of the block that grows
        self.blocks = 0

    def begin(self) -> bytes:
        message: dict[str, Any] = {
            **self.head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        return named_event("message_start", {"type": "message_start", "message": message})

    def add(self, event: Event) -> bytes:
        if isinstance(event, ToolCall):
            block = {**_block(event), "input": {}}
            delta = {"type": "input_json_delta", "partial_json": event.arguments}
            return self._stopped() + self._started("tool_use", block) + self._delta(delta) + self._stopped()
        kind = "thinking" if isinstance(event, Reasoning) else "text"
        assert isinstance(event, Reasoning | Text | BrokenCall)
        started = b"" if self.open == kind else self._stopped() + self._started(kind, _block(event, empty=True))
        return started + self._delta({"type": PIECES[kind], kind: event.text})

    def end(self) -> bytes:
        closing = self._stopped()
        data = {"type": "message_delta", "delta": self._stop(), "usage": self._usage()}
        return closing + named_event("message_delta", data)

    def close(self) -> bytes:
        return named_event("message_stop", {"type": "message_stop"})

    def fail(self, refusal: Refusal) -> bytes:
        return named_event("error", anthropic_error(refusal))

    def whole(self) -> dict[str, Any]:
        said = [Text(event.text) if isinstance(event, BrokenCall) else event for event in self.latest.events]
        content = [_block(event) for event in merged(said)]
        return {**self.head, "content": content, **self._stop(), "usage": self._usage()}

    def _stop(self) -> dict[str, Any]:
        answer = self.latest.answer
        reason = REASONS.get(answer.openai_finish_reason, "stop_sequence" if answer.stopped_by else "end_turn")
        return {"stop_reason": reason, "stop_sequence": answer.stopped_by if reason == "stop_sequence" else None}

    def _usage(self) -> dict[str, Any]:
        tokens = used(self.made)
        return {"input_tokens": tokens["prompt"] - tokens["cached"], "output_tokens": tokens["new"],
                "cache_read_input_tokens": tokens["cached"], "cache_creation_input_tokens": 0}  # fmt: skip

    def _started(self, kind: str, block: dict[str, Any]) -> bytes:
        self.open, self.blocks = kind, self.blocks + 1
        data = {"type": "content_block_start", "index": self.blocks - 1, "content_block": block}
        return named_event("content_block_start", data)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named_event("content_block_delta",
                           {"type": "content_block_delta", "index": self.blocks - 1, "delta": delta})  # fmt: skip

    def _stopped(self) -> bytes:
        if not self.open:
            return b""
        self.open = ""
        return named_event("content_block_stop", {"type": "content_block_stop", "index": self.blocks - 1})


def _block(event: Event, *, empty: bool = False) -> dict[str, Any]:
    """A block of the content; `empty` where its text is still to come."""
    if isinstance(event, ToolCall):
        return {"type": "tool_use", "id": event.id, "name": event.name, "input": json.loads(event.arguments)}
    text = "" if empty else event.text
    if isinstance(event, Reasoning):
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text}
