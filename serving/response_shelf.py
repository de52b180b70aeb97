"""Conversations that clients go on with by `previous_response_id`, kept in memory up to a limit."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from .server_errors import Refusal


class ResponseShelf:
    """The latest conversations, by the ids of their responses; older ones make room."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: of their JSON texts, images included; 0 keeps none."""
        self.most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[str, str] = OrderedDict()

    def keep(self, name: str, messages: Sequence[dict[str, Any]]) -> None:
        """Keep a conversation, unless it is larger than the shelf."""
        text = json.dumps(messages)
        self._kept[name] = text
        self._bytes += len(text)
        while self._bytes > self.most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)

    def find(self, name: str) -> list[dict[str, Any]]:
        """The messages of a conversation. Raises Refusal where it is not, or no longer, kept."""
        if not self.most_bytes:
            raise Refusal(400, "this server keeps no responses; send the whole conversation as input",
                          param="previous_response_id")  # fmt: skip
        if name not in self._kept:
            raise Refusal(400, f"the response {name[:80]!r} is not kept here, or no longer; send the whole "
                          "conversation as input", code="previous_response_not_found",
                          param="previous_response_id")  # fmt: skip
        self._kept.move_to_end(name)
        found: list[dict[str, Any]] = json.loads(self._kept[name])
        return found
