"""Chat completions, which the other APIs of conversations are translated to, as calls of `Model.generate`."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...runtimes.generation.intake import KEYWORDS
from ..picture_links import PictureLinks
from ..served import Served
from ..server_errors import Refusal
from .asked import Asked, sampling_of, seeded, tokens_of
from .chat_schema import ChatMessage, ChatRequest, NamedTool, Part

OWN = ("self", "messages", "tools")  # of `Model.generate`, which variables must not replace
SIZES = ("min_pixels", "max_pixels", "fps")


def asked_of_chat(request: ChatRequest, served: Served) -> Asked:
    """Raises Refusal and InputError for what this model, or this server, does not do."""
    wanted = request.max_completion_tokens or request.max_tokens
    chosen: dict[str, Any] = {
        **sampling_of(request, served.model),
        "max_new_tokens": tokens_of(wanted, served.options, "max_completion_tokens"),
        "thinking_budget": request.thinking_budget,
        **_variables(request),
        **_tools(request),
        **_format(request),
    }
    if request.logprobs:
        chosen["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs is not None:
        raise Refusal(400, "top_logprobs are given only with logprobs: true", param="top_logprobs")
    given = {name: value for name, value in chosen.items() if value is not None}
    messages = [_message(message, served) for message in request.messages]
    generate = partial(served.model.generate, messages, served.model.default_options())
    makes = [partial(generate, **seeded(given, index)) for index in range(request.n or 1)]
    return Asked(makes, one_call=request.parallel_tool_calls is False)


def _message(message: ChatMessage, served: Served) -> dict[str, Any]:
    """As the runtime has it: sources as data URLs or bytes, so that no path of this machine is ever opened.

    Clients send back what they got. So thoughts are left out where the template reads none of earlier turns.
    """
    left_out = {"content", "refusal"} | (set() if served.model.prompts.reads_thoughts else {"reasoning_content"})
    made = message.model_dump(exclude_none=True, exclude=left_out)
    made["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        made["content"] = [_part(part, served.links) for part in message.content]
    elif message.content is not None or message.role != "assistant":
        made["content"] = message.content
    return made


def _part(part: Part, links: PictureLinks) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    link = part.image_url if part.type == "image_url" else part.video_url
    if link is None:
        raise Refusal(400, f"a part of type {part.type} has no {part.type}; expected an object with url",
                      param="messages")  # fmt: skip
    kind = part.type.removesuffix("_url")
    sizes = {name: value for name in SIZES if (value := getattr(part, name)) is not None}
    return {"type": kind, kind: links.open(link.url), **sizes}


def _variables(request: ChatRequest) -> dict[str, Any]:
    variables = dict(request.chat_template_kwargs or {})
    if option := next((name for name in variables if name in KEYWORDS or name in OWN), None):
        raise Refusal(400, f"chat_template_kwargs has {option!r}, which is no variable of a template; give it as an "
                      "option of the request, where there is one", param="chat_template_kwargs")  # fmt: skip
    if request.continue_final_message:
        variables["continue_final_message"] = True
    if request.reasoning_effort == "none":
        variables["enable_thinking"] = False
    return variables


def _tools(request: ChatRequest) -> dict[str, Any]:
    """The tools, and which of them must be called."""
    choice = request.tool_choice.model_dump() if isinstance(request.tool_choice, NamedTool) else request.tool_choice
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools] if request.tools else None
    asks = choice not in (None, "none", "auto")
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": request.parallel_tool_calls if asks else None}


def _format(request: ChatRequest) -> dict[str, Any]:
    form = request.response_format
    if form is None or form.type == "text":
        return {}
    if form.type == "json_object":
        return {"json_schema": {"type": "object"}}
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise Refusal(400, "response_format json_schema has no schema", param="response_format")
    return {"json_schema": form.json_schema.schema_}
