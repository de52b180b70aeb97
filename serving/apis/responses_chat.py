"""Requests of /v1/responses as chat completions: items as messages, and what came before by its id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..served import Served
from ..server_errors import Refusal
from .chat_schema import ChatRequest
from .responses_schema import InputCall, InputMessage, InputPart, InputReasoning, InputResult, Item, ResponsesRequest

SAME = ("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "parallel_tool_calls",
        "chat_template_kwargs", "thinking_budget")  # fmt: skip
Message = dict[str, Any]


def responses_as_chat(request: ResponsesRequest, served: Served) -> ChatRequest:
    """Raises Refusal for a response that is not kept, and for what this server does not do."""
    if request.store and not served.shelf.most_bytes:
        raise Refusal(400, "this server keeps no responses; leave store out", param="store")
    before = [] if request.previous_response_id is None else served.shelf.find(request.previous_response_id)
    given: list[Item] = (
        [InputMessage(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    )
    instructions = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    body: dict[str, Any] = {name: getattr(request, name) for name in SAME}
    body |= {
        "messages": [*instructions, *before, *messages_of(given)],
        "max_completion_tokens": request.max_output_tokens,
        "tools": [_tool(tool.model_dump(exclude_none=True)) for tool in request.tools or ()] or None,
        "tool_choice": _choice(request),
        "response_format": _format(request),
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
    }
    if request.include or request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    return ChatRequest.model_validate({name: value for name, value in body.items() if value is not None})


def messages_of(items: Sequence[Item]) -> list[Message]:
    """The messages of items. Thoughts, a text and calls that follow one another are one message of the assistant."""
    made: list[Message] = []
    for before, item in zip([None, *items], items, strict=False):
        message = WRITTEN[type(item)](item)
        if _goes_on(before, item):
            made[-1] = _joined(made[-1], message)
        else:
            made.append(message)
    return made


def _goes_on(before: Item | None, item: Item) -> bool:
    """Whether an item belongs to the message of the one before."""
    if not _by_assistant(before) or not _by_assistant(item) or isinstance(item, InputReasoning):
        return False
    return not (isinstance(before, InputMessage) and isinstance(item, InputMessage))


def _by_assistant(item: Item | None) -> bool:
    return isinstance(item, InputReasoning | InputCall) or (isinstance(item, InputMessage) and item.role == "assistant")


def _joined(one: Message, other: Message) -> Message:
    calls = [*one.get("tool_calls", ()), *other.get("tool_calls", ())]
    texts = [text for text in (one.get("content"), other.get("content")) if text]
    joined = {**one, **other, "content": "".join(texts) if texts else None}
    return {**joined, "tool_calls": calls} if calls else joined


def _message(item: InputMessage) -> Message:
    content = item.content if isinstance(item.content, str) else _parts(item.content)
    if item.role == "assistant" and isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return {"role": item.role, "content": content}


def _call(item: InputCall) -> Message:
    function = {"name": item.name, "arguments": item.arguments}
    return {"role": "assistant", "content": None,
            "tool_calls": [{"id": item.call_id, "type": "function", "function": function}]}  # fmt: skip


def _result(item: InputResult) -> Message:
    content = item.output if isinstance(item.output, str) else _parts(item.output)
    return {"role": "tool", "tool_call_id": item.call_id, "content": content}


def _reasoning(item: InputReasoning) -> Message:
    text = "".join(part.text for part in item.content or item.summary)
    return {"role": "assistant", "content": None, "reasoning_content": text}


WRITTEN: Mapping[type, Callable[[Any], Message]] = {
    InputMessage: _message, InputCall: _call, InputResult: _result, InputReasoning: _reasoning,
}  # fmt: skip


def _parts(parts: Sequence[InputPart]) -> list[Message] | str:
    """Parts as chat completions have them; a text alone as a text."""
    made = [_part(part) for part in parts]
    return made[0]["text"] if len(made) == 1 and made[0]["type"] == "text" else made


def _part(part: InputPart) -> Message:
    if part.type != "input_image":
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise Refusal(400, f"a part of type {part.type} has no text", param="input")
        return {"type": "text", "text": text}
    if part.image_url is None:
        raise Refusal(400, "a part of type input_image has no image_url; give a data URL", param="input")
    return {"type": "image_url", "image_url": {"url": part.image_url}}


def _tool(tool: Message) -> Message:
    return {"type": tool.pop("type"), "function": tool}


def _choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    return (
        choice if choice is None or isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
    )


def _format(request: ResponsesRequest) -> Message | None:
    form = request.text.format if request.text else None
    if form is None:
        return None
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": form.type, "json_schema": {"name": form.name or "answer", "schema": form.schema_}}
