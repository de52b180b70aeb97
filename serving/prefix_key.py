"""What requests that begin alike have in common: by it they find the states that an earlier one left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

HEADS = ("model", "system", "instructions", "tools")  # come before what is said, in all APIs
BODIES = ("messages", "input", "prompt")
MOST = 1024  # characters or tokens of a text without messages


def prefix_key(body: bytes) -> str:
    """The hash of a request's model, system message, tools, and messages with their pictures to the first of a user.

    The same for every turn of a conversation; empty where there is nothing to tell requests apart by.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(request, dict):
        return ""
    parts = [request.get(name) for name in HEADS] + [_beginning(request.get(name)) for name in BODIES]
    if not any(parts):
        return ""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _beginning(said: Any) -> Any:
    if not isinstance(said, list):
        return said[:MOST] if isinstance(said, str) else None
    return [*_to_first_user(said)][:MOST]


def _to_first_user(messages: list[Any]) -> Iterator[Any]:
    for message in messages:
        yield message
        if isinstance(message, dict) and message.get("role") == "user":
            return
