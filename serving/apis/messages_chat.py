"""Requests of /v1/messages as chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..served import Served
from ..server_errors import Refusal
from .chat_schema import ChatRequest
from .messages_schema import (
    ContentBlock,
    ImageBlock,
    InMessage,
    MessagesRequest,
    ResultBlock,
    TextBlock,
    ThinkingBlock,
    UseBlock,
    UserTool,
)

SAME = ("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
Message = dict[str, Any]


def messages_as_chat(request: MessagesRequest, served: Served) -> ChatRequest:
    """A message of the assistant at the end is gone on with. Raises Refusal for blocks in the wrong place."""
    system = [] if request.system is None else [{"role": "system", "content": _content(request.system)}]
    turns = [message for turn in request.messages for message in _turn(turn)]
    choice = request.tool_choice
    body: dict[str, Any] = {name: getattr(request, name) for name in SAME}
    body |= {
        "messages": [*system, *turns],
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences,
        "tools": [_tool(tool) for tool in request.tools or ()] or None,
        "tool_choice": _choice(request),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        "continue_final_message": True if request.messages[-1].role == "assistant" else None,
        **_format(request),
        **_thinking(request, served),
    }
    return ChatRequest.model_validate({name: value for name, value in body.items() if value is not None})


def _turn(turn: InMessage) -> Iterator[Message]:
    """Results of tools are messages of their own, in front of what else the user says."""
    blocks: Sequence[ContentBlock] = (
        [TextBlock(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
    )
    if turn.role == "assistant":
        yield _said(blocks)
        return
    results = [block for block in blocks if isinstance(block, ResultBlock)]
    for result in results:
        yield {"role": "tool", "tool_call_id": result.tool_use_id, "content": _content(result.content or "")}
    rest = [block for block in blocks if not isinstance(block, ResultBlock)]
    if wrong := next((block for block in rest if not isinstance(block, TextBlock | ImageBlock)), None):
        raise Refusal(400, f"a message of the user has a block of type {wrong.type}; expected text, image or "
                      "tool_result", param="messages")  # fmt: skip
    if rest or not results:
        yield {"role": "user", "content": _content(rest)}


def _said(blocks: Sequence[ContentBlock]) -> Message:
    """What the assistant thought, said and called."""
    if wrong := next((block for block in blocks if isinstance(block, ImageBlock | ResultBlock)), None):
        raise Refusal(400, f"a message of the assistant has a block of type {wrong.type}; expected text, thinking or "
                      "tool_use", param="messages")  # fmt: skip
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    thoughts = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    calls = [
        {"id": block.id, "type": "function",
         "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}}
        for block in blocks if isinstance(block, UseBlock)
    ]  # fmt: skip
    message: Message = {"role": "assistant", "content": text or (None if calls else "")}
    return message | ({"reasoning_content": thoughts} if thoughts else {}) | ({"tool_calls": calls} if calls else {})


def _content(blocks: str | Sequence[ContentBlock]) -> str | list[Message]:
    """A text, where there is nothing else, or parts."""
    if isinstance(blocks, str):
        return blocks
    if all(isinstance(block, TextBlock) for block in blocks):
        return "\n\n".join(block.text for block in blocks if isinstance(block, TextBlock))
    return [_part(block) for block in blocks]


def _part(block: ContentBlock) -> Message:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    assert isinstance(block, ImageBlock)
    source = block.source
    url = f"data:{source.media_type};base64,{source.data}" if source.type == "base64" else source.url
    return {"type": "image_url", "image_url": {"url": url}}


def _tool(tool: UserTool) -> Message:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema,
                "strict": tool.strict}  # fmt: skip
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _choice(request: MessagesRequest) -> Any:
    choice = request.tool_choice
    if choice is None or choice.type != "tool":
        return {"any": "required"}.get(choice.type, choice.type) if choice else None
    if choice.name is None:
        raise Refusal(400, "tool_choice of type tool has no name", param="tool_choice")
    return {"type": "function", "function": {"name": choice.name}}


def _format(request: MessagesRequest) -> Message:
    form = request.output_config.format if request.output_config else None
    return {} if form is None else {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema_}}
    }  # fmt: skip


def _thinking(request: MessagesRequest, served: Served) -> Message:
    """Its budget, and the variable that turns it on or off where the template reads one."""
    given, thinking = dict(request.chat_template_kwargs or {}), request.thinking
    if thinking is None:
        return {"chat_template_kwargs": given or None}
    wanted = thinking.type == "enabled"
    if wanted and thinking.budget_tokens is None:
        raise Refusal(400, "thinking that is enabled has no budget_tokens", param="thinking")
    if "enable_thinking" in served.model.prompts.template.words.variables:
        given["enable_thinking"] = wanted
    elif not wanted and served.model.prompts.speech.reasoning:
        raise Refusal(400, "thinking cannot be disabled: the chat template of this bundle has no variable for it; "
                      "leave thinking out", param="thinking")  # fmt: skip
    return {"chat_template_kwargs": given or None, "thinking_budget": thinking.budget_tokens if wanted else None}
