"""Answers requests to one model: through the queue, in a thread, whole or streamed."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse

from ..runtimes.dialogue.events import Event, ToolCall
from ..runtimes.generation.answer import Answer
from .admission import Admission
from .answer_writer import AnswerSoFar, Writer, as_json, used
from .apis.api import Api
from .live_answer import Beginning, Begun, LiveAnswer, unless_gone
from .served import Served
from .server_errors import as_refusal
from .server_metrics import ServerMetrics

LOG = logging.getLogger("lensmith.serving")


@dataclass
class AnswerService:
    """One model that is served."""

    served: Served
    metrics: ServerMetrics
    executor: Executor
    created: int = field(default_factory=lambda: int(time.time()))
    admission: Admission = field(init=False)
    open: WeakSet[LiveAnswer] = field(default_factory=WeakSet)

    def __post_init__(self) -> None:
        self.admission = Admission(self.served.model.conversations.limit, self.served.options.queue)

    def card(self) -> dict[str, Any]:
        """How OpenAI's list of models has it."""
        return {"id": self.served.name, "object": "model", "created": self.created, "owned_by": "lensmith"}

    def shut(self) -> None:
        """Take no further requests, and end the answers that are open at their next token."""
        self.admission.closed = True
        for live in list(self.open):
            live.stop()

    async def answer(self, api: Api, request: Any, http: HttpRequest) -> Response:
        """The response to a request. Raises Refusal, InputError and ClientGone."""
        asked_for = api.translate(request, self.served)
        writer = api.writer(self.served, request, asked_for)
        live = LiveAnswer(partial(self._begins, api, asked_for), self.admission, self.executor,
                          time.monotonic() + self.served.options.deadline)  # fmt: skip
        self.open.add(live)
        await unless_gone(http, live.start())
        if request.stream:
            return StreamingResponse(self._streamed(live, writer), media_type="text/event-stream")
        await unless_gone(http, self._collect(live, writer))
        self._count(writer)
        return Response(as_json(writer.whole()), media_type="application/json")

    def _begins(self, api: Api, asked_for: Any) -> list[Callable[[], Beginning]]:
        """In the thread of the answers, as pictures may have to be fetched."""
        asked = api.asked(asked_for, self.served)

        def begin(make: Callable[[], Answer]) -> Beginning:
            answer = make()
            return Beginning(answer, _until_call(answer) if asked.one_call else answer.events())

        return [partial(begin, make) for make in asked.makes]

    async def _collect(self, live: LiveAnswer, writer: Writer) -> None:
        async for item in live.read():
            if isinstance(item, Begun):
                writer.made.append(AnswerSoFar(item.answer))
            else:
                writer.latest.add(item.event, item.length)

    async def _streamed(self, live: LiveAnswer, writer: Writer) -> AsyncIterator[bytes]:
        """Server-sent events. What fails from here on can only be said in one of them."""
        try:
            async for item in live.read():
                if isinstance(item, Begun):
                    if writer.made:
                        yield writer.end()
                    writer.made.append(AnswerSoFar(item.answer))
                    yield writer.begin()
                else:
                    writer.latest.add(item.event, item.length)
                    yield writer.add(item.event)
            yield writer.end() + writer.close()
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.status >= 500:
                LOG.exception("an answer failed")
            yield writer.fail(refusal)
        finally:
            self._count(writer)

    def _count(self, writer: Writer) -> None:
        if not writer.made:
            return
        tokens, name = used(writer.made, writer.each), self.served.name
        self.metrics.prompt_tokens.labels(name).inc(tokens["prompt"])
        self.metrics.cached_tokens.labels(name).inc(tokens["cached"])
        self.metrics.new_tokens.labels(name).inc(tokens["new"])
        self.metrics.first_token.labels(name).observe(writer.made[0].answer.timings.first_token_ms / 1000)


def _until_call(answer: Answer) -> Iterator[Event]:
    """The events of an answer that may have one call of a tool."""
    for event in answer.events():
        yield event
        if isinstance(event, ToolCall):
            answer.close()
            return
