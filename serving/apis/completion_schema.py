"""What a client may ask of /v1/completions, which goes on with a text as it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictInt

from .chat_schema import Seed, StopText, StreamOptions, Strict, Text

Ids = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]


class CompletionRequest(Strict):
    """A text, several, or their tokens."""

    model: Text
    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=128)]
    suffix: None = None  # models that fill in are none of those that are served
    echo: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None  # as if it were not given
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=16)] | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=16)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    user: Text | None = None
