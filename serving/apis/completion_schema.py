"""What a client may ask of /v1/completions, which goes on with a text as it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictInt

from .chat_schema import AnswerWishes, Text

Ids = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]


class CompletionRequest(AnswerWishes):
    """A text, several, or their tokens."""

    model: Text
    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=128)]
    suffix: None = None  # models that fill in are none of those that are served
    echo: StrictBool | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=16)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    user: Text | None = None
