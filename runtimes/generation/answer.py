"""One answer while it is made: pieces of text for its reader, and a conversation of the model until it is finished."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn

from ...targets.errors import InputError
from .timings import Timings


@dataclass
class Progress:
    """What there is of an answer so far."""

    timings: Timings
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    closed: bool = False

    def finish(self, reason: str) -> None:
        """Note why it ended; the first reason is the one."""
        self.finish_reason = self.finish_reason or reason

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Note what ends it from outside."""
        try:
            yield
        except GeneratorExit:
            self.finish("closed")
            raise
        except BaseException:
            self.finish("failed")
            raise


class Answer:
    """Iterate over it for pieces of text; `ids`, `text` and `timings` grow meanwhile.

    From its first piece on it holds one of the model's conversations, until it is read to its end, closed, or no longer
    referred to. Several answers may be open at once, in one thread or in several. As a context manager it is closed at
    the end.
    """

    def __init__(self, pieces: Generator[str, None, None], progress: Progress) -> None:
        self.text = ""
        self._pieces, self._progress = pieces, progress

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self._progress.ids

    @property
    def timings(self) -> Timings:
        """Where its time went so far."""
        return self._progress.timings

    @property
    def finish_reason(self) -> str:
        """ "eos", "stop", "length", "context", "closed" or, behind an exception, "failed"; empty while it is made."""
        return self._progress.finish_reason

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            yield piece

    def read(self) -> str:
        """The whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """End it where it is, and leave its conversation to others. A thread that reads it stops at its next token."""
        self._progress.closed = True
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
