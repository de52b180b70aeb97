"""/v1/responses, asked by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lensmith.runtimes import Model

from tests.helpers.scripted import script, xml_call

openai = pytest.importorskip("openai", reason="needs openai, the client")
pytest.importorskip("fastapi", reason="needs lensmith[serve]")
from lensmith.serving.response_shelf import ResponseShelf  # noqa: E402
from lensmith.serving.server_errors import Refusal  # noqa: E402

from tests.helpers.served import about, png, served  # noqa: E402

SHORT: Any = {"model": "tiny", "temperature": 0, "max_output_tokens": 12}
WEATHER = {"type": "function", "name": "get_weather", "description": "The weather.", "strict": False, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"]}}  # fmt: skip
OF_CHAT = {
    "type": "function",
    "function": {name: WEATHER[name] for name in ("name", "description", "parameters", "strict")},
}


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def thinking_client(thinker: Model) -> Iterator[Any]:
    with served({"tiny": thinker}) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_tokens_are_those_of_the_model(client: Any, model: Model) -> None:
    messages = [{"role": "system", "content": "Be short."}, *about(png())]
    wanted = model.generate(messages, max_new_tokens=12, temperature=0)
    text = wanted.read()
    parts = [{"type": "input_image", "image_url": png(), "detail": "auto"},
             {"type": "input_text", "text": "What is this?"}]  # fmt: skip
    asked = {**SHORT, "instructions": "Be short.", "input": [{"role": "user", "content": parts}]}
    made = client.responses.create(**asked)
    assert made.output_text == text
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (made.usage.input_tokens, made.usage.output_tokens) == (wanted.timings.prompt_tokens, 12)
    assert made.usage.input_tokens_details.cached_tokens == wanted.timings.prompt_tokens - 1
    with client.responses.stream(**asked) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert streamed == text


def test_every_event_in_its_order(thinking_client: Any, thinker: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thoughts, a text, two calls and a text; the client puts the events together to what comes whole."""
    script(monkeypatch, thinker, f"Let me see.</think>\n\nI look.\n{xml_call('Oslo')}\n{xml_call('Rome')}\nDone.")
    asked = {**SHORT, "max_output_tokens": 300, "input": "What is the weather?", "tools": [WEATHER],
             "extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}  # fmt: skip
    whole = thinking_client.responses.create(**asked)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call", "message"]
    assert whole.output[0].content[0].text == "Let me see."
    assert [json.loads(item.arguments) for item in whole.output[2:4]] == [
        {"city": city, "days": 2} for city in ("Oslo", "Rome")
    ]
    assert (whole.output_text.split(), whole.status) == (["I", "look.", "Done."], "completed")
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    events = list(thinking_client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] == "completed"
    without = [item.model_dump(exclude={"id", "call_id"}) for item in events[-1].response.output]
    assert without == [item.model_dump(exclude={"id", "call_id"}) for item in whole.output]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output
    assert kinds.count("output_item.added") == kinds.count("output_item.done") == 5
    assert kinds.count("content_part.added") == kinds.count("content_part.done") == 3
    assert kinds.count("function_call_arguments.done") == 2
    again = thinking_client.responses.create(
        **{
            **asked,
            "input": [
                {"role": "user", "content": "What is the weather?"},
                *whole.output,
                *(
                    {"type": "function_call_output", "call_id": item.call_id, "output": "12 degrees"}
                    for item in whole.output[2:4]
                ),
            ],
        }
    )
    reference = thinker.generate([
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": whole.output_text, "reasoning_content": "Let me see.", "tool_calls": [
            {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            for item in whole.output[2:4]]},
        *({"role": "tool", "tool_call_id": item.call_id, "content": "12 degrees"} for item in whole.output[2:4]),
    ], tools=[OF_CHAT], enable_thinking=True)  # fmt: skip
    assert again.usage.input_tokens == len(reference.prompt_ids)
    assert again.output_text == reference.message["content"]


def test_calls_and_forms(client: Any) -> None:
    pytest.importorskip("llguidance", reason="needs lensmith[constrain]")
    asked = {**SHORT, "max_output_tokens": 120, "input": "What is the weather?"}
    days: Any = {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"]}
    tools = [{**WEATHER, "parameters": days}]
    made = client.responses.create(tools=tools, tool_choice={"type": "function", "name": "get_weather"}, **asked)
    (call,) = made.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    schema: Any = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "name": "color", "schema": schema, "strict": True}}
    assert json.loads(client.responses.create(text=form, **asked).output_text)["color"] in ("red", "blue")


def test_going_on_with_a_response(client: Any, model: Model) -> None:
    first = client.responses.create(instructions="Be short.", input="What is this?", **SHORT)
    second = client.responses.create(previous_response_id=first.id, input="And that?", **SHORT)
    third = client.responses.create(previous_response_id=second.id, input="Why?", **SHORT)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is this?"}]
    for answer, question in ((first, "And that?"), (second, "Why?")):
        messages += [{"role": "assistant", "content": answer.output_text}, {"role": "user", "content": question}]
    assert third.output_text == model.generate(messages, max_new_tokens=12, temperature=0).read()  # no instructions
    unkept = client.responses.create(input="What is this?", store=False, **SHORT)
    assert (unkept.store, first.store) == (False, True)
    for name in (unkept.id, "resp_of_nobody"):
        with pytest.raises(openai.BadRequestError, match="not kept here") as caught:
            client.responses.create(previous_response_id=name, input="And that?", **SHORT)
        assert caught.value.code == "previous_response_not_found"


def test_a_server_that_keeps_nothing(model: Model) -> None:
    with served({"tiny": model}, kept_bytes=0) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        made = client.responses.create(input="What is this?", **SHORT)
        assert made.store is False
        for changes in ({"store": True}, {"previous_response_id": made.id}):
            with pytest.raises(openai.BadRequestError, match="this server keeps no responses"):
                client.responses.create(input="What is this?", **SHORT, **changes)


def test_the_shelf_has_a_limit() -> None:
    shelf = ResponseShelf(100)
    for name in "abc":
        shelf.keep(name, [{"role": "user", "content": "x" * 10}])  # 38 bytes each
        shelf.find("a") if name == "b" else None
    assert shelf.find("a") == shelf.find("c")
    shelf.keep("large", [{"role": "user", "content": "x" * 200}])
    for name in ("b", "large"):
        with pytest.raises(Refusal, match="not kept here"):
            shelf.find(name)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("changes", "words"), [
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "file_id"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/x"}]}]}, "data:image"),
    ({"input": [{"role": "robot", "content": ""}]}, "role"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tool_choice": "required"}, "no tools are given"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"reasoning": {"effort": "high"}}, "effort"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"max_output_tokens": 601}, "more than the 600"),
    ({"text": {"format": {"type": "json_schema", "name": "none"}}}, "schema"),
    ({"input": "x " * 2000}, "the context holds 1024"),
])  # fmt: skip
def test_what_cannot_be_obeyed_is_a_sentence(client: Any, changes: dict[str, Any], words: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.responses.create(**{**SHORT, "input": "What is this?", **changes}, stream=stream)
    assert caught.value.body["type"] == "invalid_request_error"


def test_a_failure_in_the_middle_is_an_event(client: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    run, left = model.decoder.run, iter(range(5))

    def failing(*given: Any) -> Any:
        if next(left, None) is None:
            raise MemoryError
        return run(*given)

    monkeypatch.setattr(model.decoder, "run", failing)
    events = list(client.responses.create(input="Something new", stream=True, **SHORT))
    assert events[-1].type == "response.failed"
    assert "memory" in events[-1].response.error.message


def test_logprobs(client: Any, model: Model) -> None:
    answer = model.generate(
        [{"role": "user", "content": "What is this?"}], max_new_tokens=12, temperature=0, logprobs=2
    )
    answer.read()
    asked = {**SHORT, "input": "What is this?", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    found = client.responses.create(**asked).output[0].content[0].logprobs
    assert answer.logprobs is not None
    assert [token.logprob for token in found] == pytest.approx([token.logprob for token in answer.logprobs])
    streamed = list(client.responses.create(stream=True, **asked))[-1].response.output[0].content[0].logprobs
    assert streamed == found
