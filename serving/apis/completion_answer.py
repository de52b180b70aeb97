"""Texts that are gone on with, as OpenAI's older API has them: requests as calls of `Model.complete`, and responses."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...runtimes.dialogue.events import BrokenCall, Event, Text
from ...runtimes.generation.logprobs import TokenLogprob
from ...runtimes.generation.streaming import special_tokens
from ..served import Served
from ..server_errors import Refusal
from ..writer import AnswerSoFar, Writer, bare_event
from .asked import Asked, sampling_of, seeded, tokens_of
from .chat_answer import DONE, openai_usage
from .completion_schema import CompletionRequest
from .openai_errors import openai_error

USUAL_TOKENS = 16  # of OpenAI's API, where a request does not say


def prompts_of(request: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts of a request, which may be one text, the tokens of one, or a list of either."""
    given: Any = request.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def asked_of_completion(request: CompletionRequest, served: Served) -> Asked:
    """Raises Refusal for what this server does not do."""
    if request.best_of not in (None, request.n or 1):
        raise Refusal(400, f"best_of is {request.best_of} and n {request.n or 1}; this server gives all answers "
                      "that it makes: leave best_of out", param="best_of")  # fmt: skip
    if request.echo and request.logprobs is not None:
        raise Refusal(400, "echo with logprobs asks for the probabilities of the prompt, which are not given; leave "
                      "one of them out", param="echo")  # fmt: skip
    tokens = tokens_of(request.max_tokens or USUAL_TOKENS, served.options, "max_tokens")
    chosen = {**sampling_of(request, served.model), "max_new_tokens": tokens}
    if request.logprobs is not None:
        chosen["logprobs"] = request.logprobs
    complete = partial(served.model.complete, options=served.model.default_options())
    makes = [partial(complete, prompt, **seeded(chosen, index))
             for prompt in prompts_of(request) for index in range(request.n or 1)]  # fmt: skip
    return Asked(makes)


class CompletionWriter(Writer):
    """Writes `text_completion` objects."""

    def __init__(self, served: Served, request: CompletionRequest, _: CompletionRequest) -> None:
        super().__init__(request.n or 1)
        self.head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
                     "model": served.name}  # fmt: skip
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)
        decode = partial(served.model.prompts.tokenizer.decode, skip_special_tokens=False)
        self.echoed = ["" if not request.echo else prompt if isinstance(prompt, str) else decode(prompt)
                       for prompt in prompts_of(request)]  # fmt: skip
        self.special = special_tokens(served.model.prompts.tokenizer) - served.model.prompts.tags  # have no text
        self.said = 0  # characters of the latest choice whose tokens were told

    def begin(self) -> bytes:
        echoed = self._echoed(len(self.made) - 1)
        self.said = len(echoed)
        return self._chunk(echoed) if echoed else b""

    def add(self, event: Event) -> bytes:
        assert isinstance(event, Text | BrokenCall)
        return self._chunk(event.text, logprobs=self._logprobs(self.latest, self.latest.lengths[-1]))

    def end(self) -> bytes:
        reason = self.latest.answer.openai_finish_reason
        return self._chunk("", logprobs=self._logprobs(self.latest), finish_reason=reason)

    def close(self) -> bytes:
        last = {**self.head, "choices": [], "usage": openai_usage(self)}
        return (bare_event(last) if self.with_usage else b"") + DONE

    def fail(self, refusal: Refusal) -> bytes:
        return bare_event(openai_error(refusal)) + DONE

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, each in enumerate(self.made):
            self.said = len(self._echoed(index))
            text = self._echoed(index) + "".join(event.text for event in each.events if isinstance(event, Text))
            choices.append({"index": index, "text": text, "logprobs": self._logprobs(each),
                            "finish_reason": each.answer.openai_finish_reason})  # fmt: skip
        return {**self.head, "choices": choices, "usage": openai_usage(self)}

    def _echoed(self, index: int) -> str:
        return self.echoed[index // self.each]

    def _chunk(self, text: str, **more: Any) -> bytes:
        choice = {"index": len(self.made) - 1, "text": text, "logprobs": None, "finish_reason": None, **more}
        return bare_event({**self.head, "choices": [choice]})

    def _logprobs(self, answer: AnswerSoFar, length: int | None = None) -> dict[str, Any] | None:
        """Of the tokens that were not sent yet, up to a length, in four lists."""
        new = answer.new_logprobs(length)
        if new is None:
            return None
        offsets = []
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for token in new:
            offsets.append(self.said)
            self.said += 0 if token.id in self.special else len(utf8.decode(token.spelled))
        return {
            "tokens": [old_spelling(token) for token in new],
            "token_logprobs": [token.logprob for token in new],
            "top_logprobs": [{old_spelling(top): top.logprob for top in token.top} for token in new],
            "text_offset": offsets,
        }


def old_spelling(token: TokenLogprob) -> str:
    """A token as a key: as text, or as its bytes where it is only a part of a character."""
    try:
        return token.spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.spelled)
