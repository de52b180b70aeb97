"""Whether everything that a conversation says reaches the prompt: templates drop what they do not know in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

from ...targets.errors import InputError, closest
from .messages import PARTS, parts_of

Chat: TypeAlias = "list[dict[str, Any]]"
Render: TypeAlias = Callable[[Chat], str]

REASONING = ("reasoning_content", "reasoning", "thinking")  # transformers fills in each from the others
OF_TOOLS = ("name", "tool_call_id")  # which call a result belongs to: templates that read neither go by the order
MESSAGE_KEYS = ("role", "content", "tool_calls", REASONING[0])
MARK = "lensmith"


def check_reaches(chat: Chat, text: str, render: Render, read: Callable[[], Set[str]]) -> None:
    """Raise InputError for a key of a message or a part, or for words, on which `text`, the rendered `chat`, does not
    depend. `read` gives the keys that the template reads; earlier turns may be shortened, so reading these is enough.
    """
    for index, message in enumerate(chat):
        for key in _odd_keys(message, read):
            _check_key(_with(chat, index, _without(message, key)), text, render, f"a message of the role "
                       f"{message['role']!r} has the key {key!r}", _hint(key, MESSAGE_KEYS))  # fmt: skip
        for place, part in enumerate(parts_of(message)):
            for key in (name for name in part if name not in (*PARTS[part["type"]], "type")):
                parts = [*message["content"][:place], _without(part, key), *message["content"][place + 1 :]]
                _check_key(_with(chat, index, {**message, "content": parts}), text, render, f"a part of type "
                           f"{part['type']} has the key {key!r}", _hint(key, PARTS[part["type"]]))  # fmt: skip
    _check_words(chat, text, render)


def _odd_keys(message: Mapping[str, Any], read: Callable[[], Set[str]]) -> Iterator[str]:
    """Keys of a message that need a closer look."""
    for key, value in message.items():
        usual = key in ("role", "content") or (message["role"] == "tool" and key in OF_TOOLS)
        copies = {*REASONING} if key in REASONING else {key} & {"tool_calls"}
        if not usual and value not in ("", []) and not copies & read():
            yield key


def _hint(key: str, known: Sequence[str]) -> str:
    return "leave it out" if key in known else closest(key, known)


def _check_key(changed: Chat, text: str, render: Render, what: str, hint: str) -> None:
    if _same(render, changed, text):
        raise InputError(f"{what}, which this bundle's chat template does not read; {hint}")


def _check_words(chat: Chat, text: str, render: Render) -> None:
    """What is said to the model must be in the text, or change it; what it said itself may be shortened."""
    for index, message in enumerate(chat):
        for word in _words(message) if message["role"] != "assistant" else ():
            if word not in text and _same(render, _with(chat, index, _marked(message)), text):
                raise InputError(f"the message {index} of the role {message['role']!r} does not reach the prompt: "
                                 "the chat template has no place for it there; use another role or order")  # fmt: skip


def _words(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    texts = (content,) if isinstance(content, str) else (part.get("text", "") for part in parts_of(message))
    yield from (stripped for text in texts if (stripped := text.strip()))


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    """The message with other words."""
    if isinstance(message["content"], str):
        return {**message, "content": message["content"] + MARK}
    parts = [{**part, "text": part["text"] + MARK} if part["type"] == "text" else part for part in message["content"]]
    return {**message, "content": parts}


def _same(render: Render, changed: Chat, text: str) -> bool:
    try:
        return render(changed) == text
    except InputError:  # it matters to the template
        return False


def _with(chat: Sequence[dict[str, Any]], index: int, message: dict[str, Any]) -> Chat:
    return [*chat[:index], message, *chat[index + 1 :]]


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
