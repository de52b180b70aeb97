"""Messages of a conversation in the chat format: their shape, and their images and videos.

A part is known by its `type`; what it may hold besides is in `PARTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeAlias

from ...targets.errors import InputError, closest

Message: TypeAlias = Mapping[str, Any]
Messages: TypeAlias = "str | Sequence[Message]"
"""A conversation: a list of `{"role": ..., "content": ...}` with "system", "user", "assistant" or "tool" as role and a
text or a list of parts as content, or a text alone for one question. A part is `{"type": "text", "text": ...}`,
`{"type": "image", "image": ImageSource}` (also `url`, `path`, `base64`, or OpenAI's `image_url`), or `{"type": "video",
"video": VideoSource}`. Images may bring `min_pixels`, `max_pixels`, `resized_height` and `resized_width`, videos these
and `total_pixels`, `fps`, `num_frames`, `nframes`, `frame_rate`, `min_frames`, `max_frames`, `video_start` and
`video_end` (seconds)."""

SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
SAMPLING = ("fps", "num_frames", "nframes", "frame_rate", "min_frames", "max_frames", "video_start", "video_end")
SOURCES = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}  # where HF looks for them
PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": (*SOURCES["image"], *SIZES),
    "video": (*SOURCES["video"], *SIZES, "total_pixels", *SAMPLING),
}
URL_PARTS = {"image_url": "image", "video_url": "video"}  # as in OpenAI's interface: {"image_url": {"url": ...}}


ANYTHING = "\N{INVISIBLE SEPARATOR}"  # which no conversation is likely to begin with


def as_messages(conversation: Messages) -> list[dict[str, Any]]:
    """A conversation as the processor has it: without empty keys, and with `image_url` parts as parts of type image.

    A string is one question. Raises InputError for what has not the shape of a conversation.
    """
    if isinstance(conversation, str) and conversation.strip():
        return [{"role": "user", "content": conversation}]
    if isinstance(conversation, str | bytes | Mapping) or not isinstance(conversation, Sequence) or not conversation:
        raise InputError("the conversation is empty or not a list; expected a list of messages with role and content")
    return [_message(message) for message in conversation]


def another_conversation(messages: Messages) -> list[dict[str, Any]]:
    """One that begins with the same messages of the system, and in which a user then says something else."""
    chat = as_messages(messages)
    system = list(takewhile(lambda message: message["role"] in ("system", "developer"), chat))
    return [*system, {"role": "user", "content": ANYTHING}]


def find_images(messages: Messages) -> list[Any]:
    """The sources of the images of a conversation in order, as the processor finds them; an image part needs one."""
    return [source for source, _ in find_media(messages, "image")]


def find_media(messages: Messages, kind: str) -> list[tuple[Any, Mapping[str, Any]]]:
    """The sources of the images or videos of a conversation in order, each with its part, which may hold wishes."""
    parts = (part for message in as_messages(messages) for part in parts_of(message))
    return [(_source(part), part) for part in parts if part["type"] == kind]


def parts_of(message: Message) -> Sequence[Mapping[str, Any]]:
    """The parts of a message; none where its content is a text."""
    content = message.get("content")
    return content if isinstance(content, list) else ()


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"a message is a {type(message).__name__}; expected an object with role and content")
    kept = {key: value for key, value in message.items() if value is not None}
    role, content = kept.get("role"), kept.get("content")
    if not isinstance(role, str):
        raise InputError(f"a message has the role {role!r}; expected a text such as 'user'")
    calls = kept.get("tool_calls", ())
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise InputError(f"a message has the tool_calls {kept['tool_calls']!r}; expected a list of objects")
    if isinstance(content, list | tuple):
        return {**kept, "content": [_part(part) for part in content]}
    if content is None and role == "assistant" and len(kept) > 1:  # tool calls or reasoning alone
        return kept
    if not isinstance(content, str):
        found = "no content" if content is None else f"content of type {type(content).__name__}"
        raise InputError(f"a message of the role {role!r} has {found}; expected a text or a list of parts")
    return kept


def _part(part: Any) -> dict[str, Any]:
    """A part with its type, and `image_url` as `url`."""
    if not isinstance(part, Mapping):
        raise InputError(f"a part of a message is a {type(part).__name__}; expected an object with a type, such as "
                         '{"type": "text", "text": ...}')  # fmt: skip
    kept = {key: value for key, value in part.items() if value is not None}
    kind = kept.get("type") or next((name for name in (*PARTS, *URL_PARTS) if name in kept), None)
    for name, plain in URL_PARTS.items():
        if kind in (name, plain) and name in kept:
            kind, kept = plain, {"url": _url(name, kept.pop(name)), **kept}
    if kind not in PARTS:
        raise InputError(f"a part of a message has the type {kind!r}; {closest(str(kind), [*PARTS, *URL_PARTS])}")
    if kind == "text" and not isinstance(kept.get("text"), str):
        raise InputError(f"a part of type text has the text {kept.get('text')!r}; expected a string")
    return {**kept, "type": kind}


def _url(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    unknown = next((key for key in value if key != "url" and value[key] not in (None, "auto")), None)
    if unknown is not None:
        raise InputError(f"{name} has the key {unknown!r}, which has no effect; give min_pixels or max_pixels")
    return value.get("url", "")


def _source(part: Mapping[str, Any]) -> Any:
    """The one source of a part."""
    kind = part["type"]
    found = [(key, part[key]) for key in SOURCES[kind] if key in part]
    if len(found) != 1:
        expected = ", ".join(SOURCES[kind])
        raise InputError(f"a part of type {kind} has {len(found)} sources; expected one of {expected}")
    key, source = found[0]
    bare = key == "base64" and isinstance(source, str) and not source.startswith("data:")
    return f"data:image/;base64,{source}" if bare else source
