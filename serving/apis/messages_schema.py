"""What a client may ask of /v1/messages, Anthropic's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, StrictBool, StrictInt

from .chat_schema import Seed, StopText, Strict, Text


class CacheControl(Strict):
    """Says nothing here: prefixes are cached anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Strict):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: Text
    citations: None = None


class Base64Source(Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Text


class UrlSource(Strict):
    type: Literal["url"]
    url: Text


class ImageBlock(Block):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: Text
    signature: Text | None = None


class UseBlock(Block):
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]


class ResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: Text
    content: Text | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: StrictBool | None = None


ContentBlock: TypeAlias = Annotated[
    TextBlock | ImageBlock | ThinkingBlock | UseBlock | ResultBlock, Field(discriminator="type")
]


class InMessage(Strict):
    role: Literal["user", "assistant"]
    content: Text | list[ContentBlock]


class UserTool(Block):
    """A tool of the client; Anthropic's own tools are none of a local model."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: StrictBool | None = None


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Thinking(Strict):
    type: Literal["enabled", "disabled"]
    budget_tokens: Annotated[StrictInt, Field(ge=1)] | None = None


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Strict):
    format: OutputFormat | None = None


class MessagesRequest(Strict):
    """A question of a client; the last four are no part of Anthropic's API."""

    model: Text
    max_tokens: Annotated[StrictInt, Field(ge=1)]
    messages: Annotated[list[InMessage], Field(min_length=1, max_length=4096)]
    system: Text | list[TextBlock] | None = None
    stream: StrictBool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=16)] | None = None
    tools: Annotated[list[UserTool], Field(max_length=1024)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Seed | None = None
    chat_template_kwargs: dict[str, Any] | None = None
