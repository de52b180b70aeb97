"""Errands through OpenAI's client: the question, the calls, the tools' answers, the final text."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tests.training.errands import TOOLS, Errand


@dataclass(frozen=True)
class Reply:
    """What the client got: text, calls as (id, name, arguments), thoughts, and why the answer ended."""

    text: str
    calls: list[tuple[str, str, dict[str, Any]]]
    thoughts: str
    finish_reason: str

    @property
    def called(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments alone."""
        return [(name, arguments) for _, name, arguments in self.calls]


class Asker:
    """Asks one model of a server greedily, whole or streamed, with thoughts or without."""

    def __init__(self, client: Any, model: str, *, stream: bool = False, thinking: bool = False) -> None:
        self.client, self.stream = client, stream
        template = {"chat_template_kwargs": {"enable_thinking": thinking}}
        self.options = {"model": model, "temperature": 0, "max_tokens": 256, "extra_body": template}

    def ask(self, messages: list[Any], names: Sequence[str]) -> Reply:
        """One answer, of which the message is added to the conversation as a client keeps it.

        A streamed answer's thoughts are not kept, those of a whole one are.
        """
        tools = {"tools": [TOOLS[name] for name in names]} if names else {}
        made = self.client.chat.completions.create(messages=messages, stream=self.stream, **tools, **self.options)
        reply = _joined(made) if self.stream else _whole(made.choices[0])
        calls = [
            {"id": key, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for key, name, arguments in reply.calls
        ]
        kept = {"role": "assistant", "content": reply.text or None, **({"tool_calls": calls} if calls else {})}
        messages.append(kept if self.stream else made.choices[0].message)
        return reply

    def do(self, errand: Errand, image: Image.Image, names: Sequence[str]) -> tuple[Reply, Reply | None]:
        """The first answer and, where its calls are the right ones, the answer behind the tools' results."""
        messages = [question(errand.prompt, [image])]
        first = self.ask(messages, names)
        if first.called != [(call.name, call.arguments) for call in errand.calls]:
            return first, None
        messages += [
            {"role": "tool", "tool_call_id": key, "content": json.dumps(call.response)}
            for (key, _, _), call in zip(first.calls, errand.calls, strict=True)
        ]
        return first, self.ask(messages, names)


def question(prompt: str, images: Sequence[Image.Image]) -> Any:
    """A user's turn with pictures before the text."""
    parts: list[Any] = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        link = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": link}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}


def _whole(choice: Any) -> Reply:
    message = choice.message
    calls = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    thoughts = getattr(message, "reasoning_content", None) or ""
    return Reply(message.content or "", calls, thoughts, choice.finish_reason)


def _joined(chunks: Any) -> Reply:
    """The pieces of a stream put together, as a client does."""
    text = thoughts = reason = ""
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thoughts += getattr(choice.delta, "reasoning_content", None) or ""
            reason = choice.finish_reason or reason
            for piece in choice.delta.tool_calls or ():
                parts = calls.setdefault(piece.index, ["", "", ""])
                for place, part in enumerate((piece.id, piece.function.name, piece.function.arguments)):
                    parts[place] += part or ""
    return Reply(text, [(key, name, json.loads(said)) for key, name, said in calls.values()], thoughts, reason)
