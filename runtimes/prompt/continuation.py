"""`continue_final_message` of transformers (render_jinja_template): a prompt that ends within the last message."""

from __future__ import annotations

from typing import Any

from ...targets.errors import InputError
from .messages import Messages, as_messages

MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # with a space at the end, to see whether the template trims
REASONING = ("reasoning_content", "thinking", "reasoning")  # copies of one another


def mark_end(message: dict[str, Any], field: str, source: str) -> str:
    """Put a mark behind a field of the last message, in place; returns what the field says.

    Raises InputError where there is no text to go on from, and for a field that the template `source` does not name.
    """
    said = message.get(field)
    same = [name for name in REASONING if message.get(name) == said] if field in REASONING else [field]
    if said is None:
        raise InputError(f"the last message has no {field!r} that the answer could continue")
    if not any(name in source for name in same):
        raise InputError(f"the chat template of this bundle reads no {field!r}, so no answer can continue it")
    if isinstance(said, list | tuple):
        last = next((part for part in reversed(said) if "text" in part), None)
        if last is None:
            raise InputError("the last message has no text that the answer could continue")
        said = last["text"]
        last["text"] += MARK
        return str(said)
    if not isinstance(said, str):
        raise InputError(f"{field!r} of the last message is a {type(said).__name__}; expected a text to continue")
    for name in same:
        message[name] += MARK
    return said


def cut_at_mark(text: str, said: str) -> str:
    """The rendered text up to the mark; InputError where the template dropped or changed the message."""
    if said.strip() not in text or MARK.strip() not in text:
        raise InputError("the answer cannot continue the last message, since the chat template drops or changes it; "
                         "let the conversation end with an assistant message of plain text")  # fmt: skip
    place = text.rindex(MARK.strip())
    kept = text[:place]
    return kept if text[place : place + len(MARK)] == MARK else kept.rstrip()


def ends_in_thoughts(text: str, messages: Messages, continued: bool | str | None) -> bool | None:
    """Whether a rendered prompt leaves the model within its thoughts, or None where that is left to the model."""
    if continued in REASONING:
        return True
    if continued:
        said = as_messages(messages)[-1].get("content")
        return isinstance(said, str) and said.lstrip().startswith("<think>") and "</think>" not in said
    end = text.rstrip()
    return True if end.endswith("<think>") else False if end.endswith("</think>") else None
