"""What the server knows of an API: its path, and how its requests and responses are translated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..answer_writer import Writer
from ..served import Served
from ..server_errors import Refusal
from .asked import Asked


@dataclass(frozen=True)
class Api:
    """A row of the table of APIs."""

    path: str
    schema: type[BaseModel]  # of a request, with `model` and `stream`
    translate: Callable[[Any, Served], Any]  # into what `asked` and `writer` take; raises Refusal
    asked: Callable[[Any, Served], Asked]  # in a thread, since pictures may have to be fetched
    writer: Callable[[Served, Any, Any], Writer]  # of a request and its translation
    error: Callable[[Refusal], dict[str, Any]]  # the body of a response that refuses
    summary: str
