"""What a request of a client asks of a model: its messages, the options of answers and the template's variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtimes.generation.model import Model
from ..runtimes.generation.options import GenerationOptions
from .chat_schema import ChatMessage, ChatRequest, NamedTool, Part
from .picture_links import PictureLinks
from .server_errors import Refusal
from .server_options import ServerOptions

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
FILTERS = ("top_p", "top_k", "min_p", "seed")  # say nothing where the most likely token is taken
SIZES = ("min_pixels", "max_pixels", "fps")


@dataclass(frozen=True)
class Asked:
    """Arguments of `Model.generate`, for each of the answers that are wanted."""

    messages: list[dict[str, Any]]
    options: GenerationOptions
    chosen: Mapping[str, Any]
    answers: int = 1
    calls: int | None = None  # most calls of tools

    def each(self) -> Iterator[Mapping[str, Any]]:
        """The options of one answer after another: each has a seed of its own."""
        seed = self.chosen.get("seed")
        for index in range(self.answers):
            yield self.chosen if seed is None else {**self.chosen, "seed": (seed + index) % (1 << 63)}


def asked_of_chat(request: ChatRequest, model: Model, links: PictureLinks, limits: ServerOptions) -> Asked:
    """Raises Refusal and InputError for what this model, or this server, does not do."""
    tokens = request.max_completion_tokens or request.max_tokens or limits.default_new_tokens
    if tokens > limits.most_new_tokens:
        raise Refusal(400, f"{tokens} new tokens are more than the {limits.most_new_tokens} of this server",
                      param="max_completion_tokens")  # fmt: skip
    chosen = {name: value for name in SAMPLING if (value := getattr(request, name)) is not None}
    options = model.default_options()
    if chosen.get("temperature", options.sampling.temperature) == 0:
        chosen = {name: value for name, value in chosen.items() if name not in FILTERS}
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    more: dict[str, Any] = {"max_new_tokens": tokens, "stop": stop, "thinking_budget": request.thinking_budget}
    if request.logprobs:
        more["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs is not None:
        raise Refusal(400, "top_logprobs are given only with logprobs: true", param="top_logprobs")
    more |= {**_variables(request), **_tools(request), **_format(request)}
    given = {name: value for name, value in more.items() if value is not None}
    messages = [_message(message, links) for message in request.messages]
    calls = 1 if request.parallel_tool_calls is False else None
    return Asked(messages, options, {**chosen, **given}, request.n or 1, calls)


def _message(message: ChatMessage, links: PictureLinks) -> dict[str, Any]:
    """As the runtime has it: sources as data URLs or bytes, so that no path of this machine is ever opened."""
    made = message.model_dump(exclude_none=True, exclude={"content", "refusal"})
    made["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        made["content"] = [_part(part, links) for part in message.content]
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
