"""Answers chat completions: through the queue, in a thread, whole or streamed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..runtimes.dialogue.events import Event, ToolCall
from ..runtimes.generation.answer import Answer
from ..runtimes.generation.model import Model
from .admission import Admission
from .asked import Asked, asked_of_chat
from .chat_answer import AnswerSoFar, Envelope, chunk, completion, delta, usage
from .chat_schema import ChatRequest
from .live_answer import Beginning, Begun, LiveAnswer, unless_gone
from .picture_links import PictureLinks
from .server_errors import as_refusal, error_object
from .server_metrics import ServerMetrics
from .server_options import ServerOptions

LOG = logging.getLogger("lensmith.serving")
DONE = b"data: [DONE]\n\n"


@dataclass
class ChatService:
    """One model that is served."""

    name: str
    model: Model
    options: ServerOptions
    metrics: ServerMetrics
    executor: Executor
    links: PictureLinks
    created: int = field(default_factory=lambda: int(time.time()))
    admission: Admission = field(init=False)
    open: WeakSet[LiveAnswer] = field(default_factory=WeakSet)

    def __post_init__(self) -> None:
        self.admission = Admission(self.model.conversations.limit, self.options.queue)

    def card(self) -> dict[str, Any]:
        """How OpenAI's list of models has it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "lensmith"}

    def shut(self) -> None:
        """Take no further requests, and end the answers that are open at their next token."""
        self.admission.closed = True
        for live in list(self.open):
            live.stop()

    async def chat(self, request: ChatRequest, http: HttpRequest) -> Response:
        """The response to a request. Raises Refusal, InputError and ClientGone."""
        envelope = Envelope(self.name)
        live = LiveAnswer(partial(self._begins, request), self.admission, self.executor,
                          time.monotonic() + self.options.deadline)  # fmt: skip
        self.open.add(live)
        await unless_gone(http, live.start())
        if request.stream:
            with_usage = bool(request.stream_options and request.stream_options.include_usage)
            return StreamingResponse(self._chunks(live, envelope, with_usage), media_type="text/event-stream")
        made = await unless_gone(http, self._collect(live))
        self._count(made)
        return JSONResponse(completion(envelope, made))

    def _begins(self, request: ChatRequest) -> list[Callable[[], Beginning]]:
        """In the thread of the answers, as pictures may have to be fetched."""
        asked: Asked = asked_of_chat(request, self.model, self.links, self.options)
        return [partial(self._begin, asked, chosen) for chosen in asked.each()]

    def _begin(self, asked: Asked, chosen: Mapping[str, Any]) -> Beginning:
        answer = self.model.generate(asked.messages, asked.options, **chosen)
        return Beginning(answer, answer.events() if asked.calls is None else _until_call(answer))

    async def _collect(self, live: LiveAnswer) -> list[AnswerSoFar]:
        made: list[AnswerSoFar] = []
        async for item in live.read():
            if isinstance(item, Begun):
                made.append(AnswerSoFar(item.answer))
            else:
                made[-1].events.append(item.event)
        return made

    async def _chunks(self, live: LiveAnswer, envelope: Envelope, with_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events. What fails from here on can only be said in one of them."""
        made: list[AnswerSoFar] = []
        try:
            async for item in live.read():
                if isinstance(item, Begun):
                    if made:
                        yield _last(envelope, made)
                    made.append(AnswerSoFar(item.answer))
                    yield _sent(chunk(envelope, len(made) - 1, {"role": "assistant", "content": ""}))
                else:
                    made[-1].events.append(item.event)
                    told = made[-1].new_logprobs()
                    yield _sent(chunk(envelope, len(made) - 1, delta(item.event), logprobs=told))
            yield _last(envelope, made)
            if with_usage:
                yield _sent(envelope.of("chat.completion.chunk", [], usage=usage(made)))
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.status >= 500:
                LOG.exception("an answer failed")
            yield _sent(error_object(refusal))
        finally:
            self._count(made)
        yield DONE

    def _count(self, made: Sequence[AnswerSoFar]) -> None:
        timings = [each.answer.timings for each in made]
        if timings:
            self.metrics.prompt_tokens.labels(self.name).inc(timings[0].prompt_tokens)
            self.metrics.cached_tokens.labels(self.name).inc(timings[0].reused_tokens)
            self.metrics.new_tokens.labels(self.name).inc(sum(each.new_tokens for each in timings))
            self.metrics.first_token.labels(self.name).observe(timings[0].first_token_ms / 1000)


def _until_call(answer: Answer) -> Iterator[Event]:
    """The events of an answer that may have one call of a tool."""
    for event in answer.events():
        yield event
        if isinstance(event, ToolCall):
            answer.close()
            return


def _last(envelope: Envelope, made: Sequence[AnswerSoFar]) -> bytes:
    """The end of the latest answer."""
    told = made[-1].new_logprobs()
    return _sent(chunk(envelope, len(made) - 1, {}, logprobs=told, finish_reason=made[-1].answer.openai_finish_reason))


def _sent(data: Any) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
