"""One answer while it is made: pieces of text for its reader, and a conversation of the model until it is finished."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from ...targets.errors import InputError
from ..dialogue.dialogue_parser import DialogueParser
from ..dialogue.events import Event, ToolCall, message_of
from ..engines.contract import Ints
from ..process.interrupt import Interrupt, Interrupted
from .logprobs import TokenLogprob
from .timings import Timings


@dataclass
class Progress:
    """What there is of an answer so far."""

    timings: Timings
    prompt_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str = ""
    stopped_by: str | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)

    @property
    def closed(self) -> bool:
        """Whether nobody wants more of it."""
        return self.interrupt.stopped

    def finish(self, reason: str) -> None:
        """Note why it ended; the first reason is the one."""
        self.finish_reason = self.finish_reason or reason

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Note what ends it from outside."""
        try:
            yield
        except Interrupted:
            self.finish("closed")
        except GeneratorExit:
            self.finish("closed")
            raise
        except BaseException:
            self.finish("failed")
            raise


class Answer:
    """Iterate over it for pieces of text, or over `events()`; `ids`, `text` and `timings` grow meanwhile.

    From its first piece on it holds one of the model's conversations, until it is read to its end, closed, or no longer
    referred to. Several answers may be open at once, in one thread or in several. As a context manager it is closed at
    the end.
    """

    def __init__(
        self, pieces: Generator[str, None, None], progress: Progress, parser: DialogueParser | None = None
    ) -> None:
        self.text = ""
        self._pieces, self._progress = pieces, progress
        self._parser, self._told = parser or DialogueParser(), list[Event]()
        self._ended = False

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self._progress.ids

    @property
    def prompt_ids(self) -> Ints:
        """The tokens of the prompt, int64 [seq], with one for each piece of an image."""
        return self._progress.prompt_ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """Those of the tokens so far, without an end token; None unless they were asked for."""
        return self._progress.logprobs

    @property
    def prompt_logprobs(self) -> list[TokenLogprob] | None:
        """Those of the prompt's tokens, nan for the first one; None unless `Model.complete` was asked for them."""
        return self._progress.prompt_logprobs

    @property
    def timings(self) -> Timings:
        """Where its time went so far."""
        return self._progress.timings

    @property
    def finish_reason(self) -> str:
        """ "eos", "stop" (before a stop text, or where its form is complete), "length", "context", "closed" or,
        behind an exception, "failed"; empty while it is made.
        """
        return self._progress.finish_reason

    @property
    def stopped_by(self) -> str | None:
        """The stop text that ended it."""
        return self._progress.stopped_by

    @property
    def message(self) -> dict[str, Any]:
        """The message of the assistant as OpenAI's interface has it, to be appended to the conversation.

        `content` without thoughts and calls, `reasoning_content` and `tool_calls` where there are some. Reads the
        answer to its end first.
        """
        self.read()
        return message_of(self._told)

    @property
    def openai_finish_reason(self) -> str:
        """Why it ended, in OpenAI's words: "length" where it was cut off, "tool_calls" with calls, else "stop"."""
        if self.finish_reason in ("length", "context"):
            return "length"
        return "tool_calls" if any(isinstance(event, ToolCall) for event in self._told) else "stop"

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            self._told += self._parser.push(piece)
            yield piece
        if not self._ended:
            self._ended = True
            self._told += self._parser.finish()

    def events(self) -> Iterator[Event]:
        """The answer from its beginning as pieces of thoughts and text and as whole calls, while it is made.

        Calls are those in the form of the bundle's model, where it was given tools. What is no whole call is text: it
        comes as BrokenCall, with a reason.
        """
        pieces, given = iter(self), 0
        more = True
        while more:
            more = next(pieces, None) is not None
            new = self._told[given:]
            given += len(new)
            yield from new

    def read(self) -> str:
        """The whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """End it where it is, and leave its conversation to others.

        A thread that reads it stops at its next token, in front of the next piece of the prompt or of the next image;
        ONNX Runtime breaks off an image, too.
        """
        self._progress.interrupt.stop()
        try:
            self._pieces.close()
        except ValueError:  # "generator already executing", by that thread
            return
        self._progress.finish("closed")

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "an answer cannot be pickled, copied or sent to another process; read it, and send its text and ids"
        )

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
