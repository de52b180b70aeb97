"""Conversations with tools as OpenAI's interface writes them, in the form that a chat template takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...targets.errors import InputError
from ..values import shown

Chat = list[dict[str, Any]]


def with_calls(chat: Chat, arguments: Callable[[], str], *, reads_ids: Callable[[], bool]) -> Chat:
    """`chat` with the arguments of its calls as the template takes them: as an "object" or as JSON "text".

    Results come in the order of the calls that they answer, for a template that does not read `tool_call_id`, since it
    is by their order that the model tells them apart. Raises InputError for arguments that are no object, and for
    results of calls that were not made.
    """
    if not any(message.get("tool_calls") for message in chat):
        return chat
    wanted = arguments()
    made = [_message(index, message, wanted) for index, message in enumerate(chat)]
    ordered = list(_in_order(made))
    return made if reads_ids() else ordered


def _message(index: int, message: dict[str, Any], wanted: str) -> dict[str, Any]:
    if message["role"] != "assistant" or not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_call(index, call, wanted) for call in message["tool_calls"]]}


def _call(index: int, call: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _call(index, inner, wanted)}
    if "arguments" not in call:
        return dict(call)
    given = call["arguments"]
    if given is None or (isinstance(given, str) and not given.strip()):
        given = {}
    if wanted == "text" and isinstance(given, str):
        return {**call, "arguments": given}
    parsed = _parsed(given) if isinstance(given, str) else given
    if not isinstance(parsed, Mapping):
        name = shown(call.get("name"))
        raise InputError(f"the message {index} calls the tool {name} with the arguments {shown(given)}; expected an "
                         "object, or the text of one in JSON")  # fmt: skip
    return {**call, "arguments": dict(parsed)}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text


def _in_order(chat: Chat) -> Iterator[dict[str, Any]]:
    """The messages, with neighbouring results in the order of the calls that they name."""
    ids: list[Any] = []
    results: Chat = []
    for index, message in enumerate(chat):
        if message["role"] == "tool":
            number = message.get("tool_call_id")
            if ids and None not in ids and number is not None and number not in ids:
                raise InputError(f"the message {index} is the result of the call {shown(number)}, which the assistant "
                                 f"did not make before it; it made {', '.join(map(shown, ids))}")  # fmt: skip
            results.append(message)
            continue
        yield from _sorted(results, ids)
        results = []
        if message["role"] == "assistant":
            ids = [call.get("id") for call in message.get("tool_calls") or ()]
        yield message
    yield from _sorted(results, ids)


def _sorted(results: Chat, ids: list[Any]) -> Chat:
    """Results by their calls, where each names one of its own."""
    numbers = [message.get("tool_call_id") for message in results]
    whole = len(set(map(repr, numbers))) == len(numbers) and all(
        number is not None and number in ids for number in numbers
    )
    return sorted(results, key=lambda message: ids.index(message["tool_call_id"])) if whole else results
