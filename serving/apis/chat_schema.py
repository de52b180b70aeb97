"""What a client may ask of /v1/chat/completions: OpenAI's names, and some that vLLM's clients know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

Text = Annotated[str, Field(max_length=1 << 24)]
StopText = Annotated[str, Field(min_length=1, max_length=1 << 12)]
Seed = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)]


class Strict(BaseModel):
    """An object without keys that would not be obeyed."""

    model_config = ConfigDict(extra="forbid")


class ImageUrl(Strict):
    url: Text
    detail: Literal["auto", "low", "high"] | None = None


class VideoUrl(Strict):
    url: Text


class Part(Strict):
    """A part of a message: text, or where an image or a video is."""

    type: Literal["text", "image_url", "video_url"]
    text: Text | None = None
    image_url: ImageUrl | None = None
    video_url: VideoUrl | None = None
    min_pixels: Annotated[StrictInt, Field(ge=1)] | None = None
    max_pixels: Annotated[StrictInt, Field(ge=1)] | None = None
    fps: Annotated[float, Field(gt=0)] | None = None


class CalledFunction(Strict):
    name: Text
    arguments: Text


class ToolCall(Strict):
    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: Text | None = None
    reasoning_content: Text | None = None
    refusal: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None


class Function(Strict):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: Text


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: Text
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: StrictBool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Strict):
    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class AnswerWishes(Strict):
    """What chat completions and completions are asked for alike: how tokens are chosen, and how they are sent."""

    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None  # as if it were not given
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=16)] | None = None


class ChatRequest(AnswerWishes):
    """A question of a client."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none"] | None = None  # no thinking; other efforts would not be obeyed
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: StrictBool | None = None
    thinking_budget: Annotated[StrictInt, Field(ge=0)] | None = None
    user: Text | None = None  # these say nothing about the answer
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
