"""Answers as OpenAI's responses: an object with items, or the events in which it grows."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from ...runtimes.dialogue.events import BrokenCall, Event, Reasoning, Text, ToolCall, message_of
from ..answer_writer import Writer, named_event, used
from ..served import Served
from ..server_errors import Refusal
from .chat_schema import ChatRequest
from .responses_schema import ResponsesRequest

AGAIN = ("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p", "top_logprobs", "user",
         "safety_identifier")  # fmt: skip
PARTS = {"reasoning": "reasoning_text", "message": "output_text"}  # what items of text hold


class ResponsesWriter(Writer):
    """Writes `response` objects and the events of their items."""

    def __init__(self, served: Served, request: ResponsesRequest, chat: ChatRequest) -> None:
        super().__init__()
        self.shelf, self.chat = served.shelf, chat
        self.stored = bool(served.shelf.most_bytes) and request.store is not False
        self.head = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()),
                     "model": served.name, **_echoed(request), "store": self.stored}  # fmt: skip
        self.instructed = request.instructions is not None
        self.items: list[dict[str, Any]] = []
        self.number = 0  # of the next event

    def begin(self) -> bytes:
        told = {"response": self._response("in_progress")}
        return self._event("response.created", told) + self._event("response.in_progress", told)

    def add(self, event: Event) -> bytes:
        changes = self._changes(event, self.latest.lengths[-1])
        return b"".join(self._event(name, data) for name, data in changes)

    def close(self) -> bytes:
        closing = b"".join(self._event(name, data) for name, data in self._closed(last=True))
        response = self._done()
        return closing + self._event(f"response.{response['status']}", {"response": response})

    def fail(self, refusal: Refusal) -> bytes:
        error = {"code": "server_error" if refusal.status >= 500 else "invalid_prompt", "message": refusal.message}
        return self._event("response.failed", {"response": {**self._response("failed"), "error": error}})

    def whole(self) -> dict[str, Any]:
        for event, length in zip(self.latest.events, self.latest.lengths, strict=True):
            deque(self._changes(event, length), maxlen=0)
        deque(self._closed(last=True), maxlen=0)
        return self._done()

    def _done(self) -> dict[str, Any]:
        """The response at its end, which is kept for those who go on with it."""
        if self.stored:
            before = [message.model_dump(exclude_none=True) for message in self.chat.messages[self.instructed :]]
            self.shelf.keep(str(self.head["id"]), [*before, message_of(self.latest.events)])
        return self._response("incomplete" if self._cut else "completed")

    @property
    def _cut(self) -> bool:
        return self.latest.answer.openai_finish_reason == "length"

    def _response(self, status: str) -> dict[str, Any]:
        done = status in ("completed", "incomplete")
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {**self.head, "status": status, "error": None, "incomplete_details": reason, "output": [*self.items],
                "usage": self._usage() if done else None}  # fmt: skip

    def _usage(self) -> dict[str, Any]:
        tokens = used(self.made)
        return {
            "input_tokens": tokens["prompt"],
            "input_tokens_details": {"cached_tokens": tokens["cached"], "cache_write_tokens": 0},
            "output_tokens": tokens["new"],
            "output_tokens_details": {"reasoning_tokens": self.latest.thought},
            "total_tokens": tokens["prompt"] + tokens["new"],
        }

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        number, self.number = self.number, self.number + 1
        return named_event(name, {"type": name, "sequence_number": number, **data})

    def _changes(self, event: Event, length: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of one more piece of the answer, whose items grow with it."""
        if isinstance(event, ToolCall):
            yield from self._closed()
            yield from self._called(event)
            return
        kind = "reasoning" if isinstance(event, Reasoning) else "message"
        if not self.items or self.items[-1]["type"] != kind:
            yield from self._closed()
            yield from self._opened(kind)
        assert isinstance(event, Reasoning | Text | BrokenCall)
        part = self.items[-1]["content"][0]
        part["text"] += event.text
        place = {**self._place(), "delta": event.text}
        logprobs = [token.as_openai() for token in self.latest.new_logprobs(length) or ()]
        if kind == "message":
            place["logprobs"] = logprobs
            part["logprobs"] += logprobs
        yield f"response.{PARTS[kind]}.delta", place

    def _opened(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        part: dict[str, Any] = {"type": PARTS[kind], "text": ""}
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
            item |= {"id": f"msg_{uuid.uuid4().hex}", "role": "assistant"}
        else:
            item |= {"id": f"rs_{uuid.uuid4().hex}", "summary": []}
        self.items.append({**item, "content": []})
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": {**item, "content": []}}
        self.items[-1]["content"].append(part)
        yield "response.content_part.added", {**self._place(), "part": part}

    def _closed(self, *, last: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        """The end of the latest item, if it is one of text and still open; `last`: the answer has ended, too."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return
        item, place = self.items[-1], self._place()
        (part,) = item["content"]
        item["status"] = "incomplete" if last and self._cut else "completed"
        if item["type"] == "message":
            rest = self.latest.new_logprobs() if last else None
            part["logprobs"] += [token.as_openai() for token in rest or ()]
        told = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
        yield f"response.{part['type']}.done", {**place, "text": part["text"], **told}
        yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": place["output_index"], "item": item}

    def _called(self, call: ToolCall) -> Iterator[tuple[str, dict[str, Any]]]:
        item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": call.id, "name": call.name,
                "arguments": call.arguments, "status": "completed"}  # fmt: skip
        self.items.append(item)
        index = len(self.items) - 1
        place = {"output_index": index, "item_id": item["id"]}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield "response.output_item.added", {"output_index": index, "item": begun}
        yield "response.function_call_arguments.delta", {**place, "delta": call.arguments}
        yield "response.function_call_arguments.done", {**place, "name": call.name, "arguments": call.arguments}
        yield "response.output_item.done", {"output_index": index, "item": item}

    def _place(self) -> dict[str, Any]:
        return {"output_index": len(self.items) - 1, "content_index": 0, "item_id": self.items[-1]["id"]}


def _echoed(request: ResponsesRequest) -> dict[str, Any]:
    """What a response says again of its request."""
    asked = request.model_dump(exclude_none=True, by_alias=True)
    text = asked.get("text", {})
    return {
        **{name: asked.get(name) for name in AGAIN},
        "metadata": asked.get("metadata", {}),
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "reasoning": {"effort": None, "summary": None, **asked.get("reasoning", {})},
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": [{"strict": False, "parameters": None, **tool} for tool in asked.get("tools", ())],
        "truncation": "disabled",
        "background": False,
    }  # fmt: skip
