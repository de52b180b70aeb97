"""What a client may ask of /v1/responses, OpenAI's newer API."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, StrictBool, StrictInt, Tag

from .chat_schema import Seed, StopText, Strict, Text

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputPart(Strict):
    """A part of a message of the input, or of one that the server made."""

    type: Literal["input_text", "input_image", "output_text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None
    image_url: Text | None = None
    file_id: None = None
    detail: Literal["auto", "low", "high"] | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[InputPart]
    id: Text | None = None
    status: Status | None = None
    phase: Text | None = None


class InputCall(Strict):
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text
    id: Text | None = None
    status: Status | None = None


class InputResult(Strict):
    type: Literal["function_call_output"]
    call_id: Text
    output: Text | list[InputPart]
    id: Text | None = None
    status: Status | None = None


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: Text


class InputReasoning(Strict):
    type: Literal["reasoning"]
    id: Text | None = None
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: Status | None = None


def kind_of(item: Any) -> Any:
    """The type of an item, which may be left out of messages."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(kind_of),
]


class FlatTool(Strict):
    """A function; OpenAI's own tools are none of a local model."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class FlatNamedTool(Strict):
    type: Literal["function"]
    name: Text


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: StrictBool | None = None


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None  # as if it were not given


class ReasoningConfig(Strict):
    effort: Literal["none"] | None = None  # no thinking; other efforts would not be obeyed
    summary: None = None


class EventOptions(Strict):
    include_obfuscation: StrictBool | None = None


class ResponsesRequest(Strict):
    """A question of a client; the last four are no part of OpenAI's API."""

    model: Text
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: Text | None = None
    previous_response_id: Text | None = None
    store: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: EventOptions | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    tools: Annotated[list[FlatTool], Field(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    metadata: dict[str, Any] | None = None  # these say nothing about the answer
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    service_tier: Literal["auto", "default"] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_budget: Annotated[StrictInt, Field(ge=0)] | None = None
