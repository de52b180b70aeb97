"""What an answer consists of: thoughts, text, calls of tools, and calls that are none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class Text:
    """A piece of what it says."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A whole call; `arguments` are the text of a JSON object, typed by the tool's schema."""

    index: int  # among the calls of the answer
    id: str
    name: str
    arguments: str

    def as_message_part(self) -> dict[str, Any]:
        """An entry of `tool_calls` in a message as OpenAI writes it; with `index` an entry of a streamed delta."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class BrokenCall:
    """What begins like a call and is none: `text` as the model wrote it, which counts as text, and why."""

    text: str
    reason: str


Event: TypeAlias = Reasoning | Text | ToolCall | BrokenCall


def merged(events: Iterable[Event]) -> list[Event]:
    """Events with neighbouring pieces of one kind joined: the same for every way in which a text is cut."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + event.text)
        else:
            joined.append(event)
    return joined


def message_of(events: Iterable[Event]) -> dict[str, Any]:
    """The message of the assistant as OpenAI writes it, with `reasoning_content` where it thought.

    Its content is what was said around the calls, None where there are calls alone.
    """
    found = list(events)
    content = "".join(event.text for event in found if isinstance(event, Text | BrokenCall))
    reasoning = "".join(event.text for event in found if isinstance(event, Reasoning))
    calls = [event.as_message_part() for event in found if isinstance(event, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message
