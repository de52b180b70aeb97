"""Texts that are gone on with, as OpenAI's older API has them: requests as calls of `Model.complete`, and responses."""

from __future__ import annotations

import codecs
import math
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...runtimes.dialogue.events import BrokenCall, Event, Text
from ...runtimes.generation.logprobs import TokenLogprob
from ...runtimes.generation.streaming import special_tokens
from ..answer_writer import AnswerSoFar, Writer, bare_event
from ..served import Served
from ..server_errors import Refusal
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
    tokens = tokens_of(request.max_tokens or USUAL_TOKENS, served.options, "max_tokens")
    chosen = {**sampling_of(request, served.model), "max_new_tokens": tokens}
    if request.logprobs is not None:
        chosen |= {"logprobs": request.logprobs, "prompt_logprobs": bool(request.echo)}
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
        self._start()

    def _start(self) -> None:
        """Begin with a choice of which nothing was said."""
        self.fresh, self.said = True, 0  # the latter in characters
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def begin(self) -> bytes:
        self._start()
        return b""

    def add(self, event: Event) -> bytes:
        assert isinstance(event, Text | BrokenCall)
        return self._grown(event.text, self.latest.lengths[-1])

    def end(self) -> bytes:
        return self._grown("", None, finish_reason=self.latest.answer.openai_finish_reason)

    def _grown(self, text: str, length: int | None, **more: Any) -> bytes:
        """A piece of the latest choice, the first one behind its prompt, if that is echoed."""
        index = len(self.made) - 1
        echoed = self._echoed(index) if self.fresh else ""
        logprobs = self._logprobs(self.latest, self._echoed(index), length)
        self.fresh = False
        return self._chunk(echoed + text, logprobs=logprobs, **more)

    def close(self) -> bytes:
        last = {**self.head, "choices": [], "usage": openai_usage(self)}
        return (bare_event(last) if self.with_usage else b"") + DONE

    def fail(self, refusal: Refusal) -> bytes:
        return bare_event(openai_error(refusal)) + DONE

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, each in enumerate(self.made):
            self._start()
            echoed = self._echoed(index)
            text = echoed + "".join(event.text for event in each.events if isinstance(event, Text))
            choices.append({"index": index, "text": text, "logprobs": self._logprobs(each, echoed),
                            "finish_reason": each.answer.openai_finish_reason})  # fmt: skip
        return {**self.head, "choices": choices, "usage": openai_usage(self)}

    def _echoed(self, index: int) -> str:
        return self.echoed[index // self.each]

    def _chunk(self, text: str, **more: Any) -> bytes:
        choice = {"index": len(self.made) - 1, "text": text, "logprobs": None, "finish_reason": None, **more}
        return bare_event({**self.head, "choices": [choice]})

    def _logprobs(self, answer: AnswerSoFar, echoed: str, length: int | None = None) -> dict[str, Any] | None:
        """Of the tokens that were not sent yet, up to a length, in four lists; first those of an echoed prompt."""
        new = answer.new_logprobs(length)
        if new is None:
            return None
        of_prompt = (answer.answer.prompt_logprobs or []) if self.fresh else []
        offsets = []
        for token in of_prompt:  # whose tokenizer may add tokens and spaces that the text has not
            offsets.append(self.said)
            text = self.utf8.decode(token.spelled)
            found = next((each for each in (text, text.lstrip()) if echoed.startswith(each, self.said)), "")
            self.said += len(found)
        for token in new:
            offsets.append(self.said)
            self.said += 0 if token.id in self.special else len(self.utf8.decode(token.spelled))
        tokens = [*of_prompt, *new]
        return {
            "tokens": [old_spelling(token) for token in tokens],
            "token_logprobs": [None if math.isnan(token.logprob) else token.logprob for token in tokens],
            "top_logprobs": [{old_spelling(top): top.logprob for top in token.top} or None for token in tokens],
            "text_offset": offsets,
        }


def old_spelling(token: TokenLogprob) -> str:
    """A token as a key: as text, or as its bytes where it is only a part of a character."""
    try:
        return token.spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.spelled)
