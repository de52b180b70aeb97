"""The APIs that the server speaks: a row for each, which is all that tells them apart."""

from __future__ import annotations

from typing import Any

from ..served import Served
from ..server_errors import Refusal
from .api import Api
from .chat_answer import ChatWriter
from .chat_asked import asked_of_chat
from .chat_schema import ChatRequest
from .completion_answer import CompletionWriter, asked_of_completion
from .completion_schema import CompletionRequest
from .messages_answer import MessagesWriter, anthropic_error
from .messages_chat import messages_as_chat
from .messages_schema import MessagesRequest
from .openai_errors import openai_error
from .responses_answer import ResponsesWriter
from .responses_chat import responses_as_chat
from .responses_schema import ResponsesRequest


def as_it_is(request: Any, _: Served) -> Any:
    """A request that needs no translation."""
    return request


APIS = (
    Api("/v1/chat/completions", ChatRequest, as_it_is, asked_of_chat, ChatWriter, openai_error,
        "Answer a conversation."),
    Api("/v1/completions", CompletionRequest, as_it_is, asked_of_completion, CompletionWriter, openai_error,
        "Go on with a text."),
    Api("/v1/responses", ResponsesRequest, responses_as_chat, asked_of_chat, ResponsesWriter, openai_error,
        "Answer a conversation, as OpenAI's newer API has it."),
    Api("/v1/messages", MessagesRequest, messages_as_chat, asked_of_chat, MessagesWriter, anthropic_error,
        "Answer a conversation, as Anthropic's API has it."),
)  # fmt: skip


def error_body(path: str, refusal: Refusal) -> dict[str, Any]:
    """The body of a response that refuses, in the words of the API of a path."""
    error = next((api.error for api in APIS if path.startswith(api.path)), openai_error)
    return error(refusal)
