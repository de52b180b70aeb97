"""The loop of an answer: a prompt, then one token after the other, as text."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..engines.contract import Floats
from ..prompt.requests import Request
from ..tuning.tuning import USUAL, Tuning, most_drafts
from .answer import Progress
from .conversation import Conversation
from .drafted_steps import DraftedSteps, DraftSource
from .guide import Guide
from .logprobs import token_logprob
from .mtp_drafts import MOST_DRAFTS as MOST_OF_HEAD
from .mtp_drafts import MtpDrafts
from .ngram_drafts import LONG, SIZES, NgramDrafts
from .ngram_drafts import MOST_DRAFTS as MOST_OF_TEXT
from .options import GenerationOptions
from .raw_prompt import logprobs_of_prompt
from .sampling import Sampler
from .streaming import TextStream


@dataclass(frozen=True)
class TokenLoop:
    """One answer in a conversation; what comes of it is told to `progress`."""

    conversation: Conversation
    request: Request
    options: GenerationOptions
    progress: Progress
    guide: Guide | None
    eos_token_ids: Collection[int]
    tuning: Tuning = USUAL

    def pieces(self, stream: TextStream) -> Generator[str, None, None]:
        """Pieces of text as a stream cuts them, up to its stop string; what it holds back at the end is left in it."""
        progress, started, away = self.progress, time.perf_counter(), 0.0
        try:
            with closing(self.tokens()) as tokens:
                for token in tokens:
                    piece = stream.push(token)
                    self._note_decoding(started + away)
                    if piece:
                        left = time.perf_counter()
                        yield piece
                        away += time.perf_counter() - left  # the reader's own time
                    if stream.stopped_by is not None:
                        progress.stopped_by = stream.stopped_by
                        progress.finish("stop")
                        return
                self._note_decoding(started + away)  # an end token, which is not given, was a step too
        finally:
            self.conversation.keep()

    def tokens(self) -> Generator[int, None, None]:
        """Choose tokens until an end token (which is not given), the limit of new tokens or the end of the context."""
        started = time.perf_counter()
        rows = self._prefill()
        if not len(rows):
            self.progress.finish("closed")
            return
        sampler = Sampler(self.options.sampling)
        with closing(self._steps(sampler)) as steps:
            yield from self._decode(rows[-1], steps, sampler, started)

    def _decode(
        self, logits: Floats, steps: DraftedSteps, sampler: Sampler, started: float
    ) -> Generator[int, None, None]:
        options, progress, length = self.options, self.progress, len(self.request.prompt)
        capacity = self.conversation.decoder.capacity
        choose = sampler if self.guide is None else partial(self.guide.choose, sampler)
        progress.logprobs = None if options.logprobs is None else []
        history = np.empty(min(length + options.max_new_tokens, capacity + 1), np.int64)
        history[:length] = self.request.prompt.ids
        for index in range(options.max_new_tokens):
            token = choose(self._sayable(logits), history[: length + index])
            if index == 0:
                progress.timings.prefill_ms = 1000 * (time.perf_counter() - started)
            progress.timings.new_tokens += 1
            progress.ids.append(token)
            history[length + index] = token
            if token in self.eos_token_ids and not options.ignore_eos:
                progress.finish("eos")
                return
            if options.logprobs is not None and progress.logprobs is not None:
                tokenizer = self.conversation.prompts.tokenizer
                progress.logprobs.append(token_logprob(tokenizer, logits, token, options.logprobs))
            yield token
            if (reason := self._end(index, steps)) is not None:
                progress.finish(reason)
                return
            logits = steps.run(history[: length + index + 1], options.max_new_tokens - index - 1)

    def _steps(self, sampler: Sampler) -> DraftedSteps:
        conversation, position = self.conversation, self.request.next_position
        return DraftedSteps(conversation, position, self.progress.timings, [*self._sources(sampler)])

    def _sources(self, sampler: Sampler) -> Iterator[DraftSource]:
        conversation, wanted = self.conversation, self.options.draft
        if not (conversation.decoder.drafts if wanted is None else wanted):
            return
        never = {conversation.prompts.image_token_id, *(() if self.options.ignore_eos else self.eos_token_ids)}
        if most := most_drafts(self.tuning.ngram_drafts, MOST_OF_TEXT, wanted):
            yield NgramDrafts(never, SIZES if conversation.head is None else LONG, most)
        if conversation.head is not None:
            offset = self.request.next_position - conversation.length
            most = most_drafts(self.tuning.head_drafts, MOST_OF_HEAD, wanted)
            yield MtpDrafts(conversation.head, offset, never, sampler.foresee, most)

    def _sayable(self, logits: Floats) -> Floats:
        """Logits [vocab] without the token that stands for an image: a step with it would need the image."""
        placeholder = self.conversation.prompts.image_token_id
        if not 0 <= placeholder < len(logits):
            return logits
        scores = logits.copy()
        scores[placeholder] = -np.inf
        return scores

    def _note_decoding(self, started: float) -> None:
        timings = self.progress.timings
        if timings.new_tokens:
            timings.decode_ms = 1000 * (time.perf_counter() - started) - timings.prefill_ms

    def _prefill(self) -> Floats:
        """The logits behind the prompt; none where the answer was closed on the way."""
        progress, conversation, logprobs = self.progress, self.conversation, self.options.logprobs
        if progress.prompt_logprobs is not None and logprobs is not None:
            progress.prompt_logprobs += logprobs_of_prompt(
                conversation, self.request, logprobs, lambda: progress.closed
            )
        logits = conversation.prefill(self.request, stopped=lambda: progress.closed)
        progress.timings.reused_tokens = conversation.reused
        return logits

    def _end(self, index: int, steps: DraftedSteps) -> str | None:
        """Why the answer ends behind its token `index`, if it does."""
        if self.guide is not None and self.guide.complete:
            return "stop"
        if index + 1 == self.options.max_new_tokens:
            return "length"
        if steps.certain == self.conversation.decoder.capacity:
            return "context"
        return "closed" if self.progress.closed else None
