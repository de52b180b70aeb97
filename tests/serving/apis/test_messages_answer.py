"""/v1/messages, asked by Anthropic's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from lensmith.runtimes import Model

from tests.helpers.scripted import script, xml_call

anthropic = pytest.importorskip("anthropic", reason="needs anthropic, the client")
pytest.importorskip("fastapi", reason="needs lensmith[serve]")
from tests.helpers.served import about, png, served  # noqa: E402

GREEDY: Any = {"model": "tiny", "extra_body": {"temperature": 0}}
SHORT: Any = {**GREEDY, "max_tokens": 12}
QUESTION = [{"role": "user", "content": "What is this?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
              "required": ["city", "days"]}  # fmt: skip
WEATHER = {"name": "get_weather", "description": "The weather.", "input_schema": PARAMETERS}
OF_CHAT = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS},
}


def connected(address: str, key: str = "none") -> Any:
    return anthropic.Anthropic(base_url=address, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return connected(address)


@pytest.fixture(scope="module")
def thinking_client(thinker: Model) -> Iterator[Any]:
    with served({"tiny": thinker}) as address:
        yield connected(address)


def picture(color: int = 200) -> dict[str, Any]:
    data = png(color).partition(",")[2]
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def test_tokens_are_those_of_the_model(client: Any, model: Model) -> None:
    messages = [{"role": "system", "content": "Be short.\n\nBe kind."}, *about(png(), png(90))]
    wanted = model.generate(messages, max_new_tokens=12, temperature=0)
    text = wanted.read()
    system = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}},
              {"type": "text", "text": "Be kind."}]  # fmt: skip
    content = [picture(), picture(90), {"type": "text", "text": "What is this?"}]
    asked = {**SHORT, "system": system, "messages": [{"role": "user", "content": content}]}
    made = client.messages.create(**asked)
    assert [block.text for block in made.content] == [text]
    assert (made.stop_reason, made.usage.output_tokens) == ("max_tokens", 12)
    assert (made.usage.input_tokens, made.usage.cache_read_input_tokens) == (1, wanted.timings.prompt_tokens - 1)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == text
        final = stream.get_final_message()
    assert final.model_dump(exclude={"id"}) == made.model_dump(exclude={"id"})


def test_stop_sequences_and_going_on(client: Any, model: Model) -> None:
    text = model.generate(QUESTION, max_new_tokens=12, temperature=0).read()
    stop = text[4:7]
    made = client.messages.create(messages=QUESTION, stop_sequences=["never said", stop], **SHORT)
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)
    assert made.content[0].text == text[: text.index(stop)]
    begun = [*QUESTION, {"role": "assistant", "content": "It is a"}]
    wanted = model.generate(begun, max_new_tokens=12, temperature=0, continue_final_message=True).read()
    assert client.messages.create(messages=begun, **SHORT).content[0].text == wanted


def test_thoughts_text_and_calls(thinking_client: Any, thinker: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, thinker, f"Let me see.</think>\n\nI look.\n{xml_call('Oslo')}\n{xml_call('Rome')}")
    asked = {**GREEDY, "max_tokens": 300, "messages": QUESTION, "tools": [WEATHER],
             "thinking": {"type": "enabled", "budget_tokens": 200}}  # fmt: skip
    whole = thinking_client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (whole.content[0].thinking, whole.content[1].text) == ("Let me see.", "I look.")
    assert [block.input for block in whole.content[2:]] == [{"city": city, "days": 2} for city in ("Oslo", "Rome")]
    assert whole.stop_reason == "tool_use"
    with thinking_client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    others = {"id": True, "usage": True, "content": {"__all__": {"id"}}}  # the second has more of its prompt cached
    assert final.model_dump(exclude=others) == whole.model_dump(exclude=others)
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == whole.usage.input_tokens
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "12 degrees"}]}
               for block in whole.content[2:]]  # fmt: skip
    history = [*QUESTION, {"role": "assistant", "content": whole.content},
               {"role": "user", "content": [*results, {"type": "text", "text": "So?"}]}]  # fmt: skip
    again = thinking_client.messages.create(**{**asked, "messages": history})
    calls = [{"id": block.id, "type": "function",
              "function": {"name": block.name, "arguments": f'{{"city": "{block.input["city"]}", "days": 2}}'}}
             for block in whole.content[2:]]  # fmt: skip
    reference = thinker.prepare([
        *QUESTION,
        {"role": "assistant", "content": "I look.", "reasoning_content": "Let me see.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "12 degrees"} for call in calls),
        {"role": "user", "content": "So?"}], tools=[OF_CHAT], enable_thinking=True)  # fmt: skip
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens == len(reference.prompt)


def test_thinking_is_turned_off_and_bounded(thinking_client: Any, thinker: Model) -> None:
    off = thinking_client.messages.create(messages=QUESTION, thinking={"type": "disabled"}, **SHORT)
    assert (
        off.content[0].text
        == thinker.generate(QUESTION, max_new_tokens=12, temperature=0, enable_thinking=False).read()
    )
    on = thinking_client.messages.create(messages=QUESTION, thinking={"type": "enabled", "budget_tokens": 4}, **SHORT)
    answer = thinker.generate(QUESTION, max_new_tokens=12, temperature=0, enable_thinking=True, thinking_budget=4)
    message = answer.message
    assert on.content[0].thinking == message["reasoning_content"]
    assert on.content[1].text == message["content"]


def test_choices_of_tools_and_forms(client: Any) -> None:
    pytest.importorskip("llguidance", reason="needs lensmith[constrain]")
    schema: Any = {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"]}
    tools = [{**WEATHER, "name": name, "input_schema": schema} for name in ("get_weather", "other")]
    for choice, names in (({"type": "any"}, ("get_weather", "other")), ({"type": "tool", "name": "other"}, ("other",))):
        made = client.messages.create(messages=QUESTION, tools=tools, max_tokens=120,
                                      tool_choice={**choice, "disable_parallel_tool_use": True}, **GREEDY)  # fmt: skip
        assert [block.type for block in made.content] == ["tool_use"]
        assert made.content[0].name in names
        assert made.content[0].input["days"] in (1, 2)
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "schema": schema}}
    made = client.messages.create(messages=QUESTION, max_tokens=60, output_config=form, **GREEDY)
    assert made.content[0].text in ('{"color": "red"}', '{"color": "blue"}')


def test_none_of_the_tools(client: Any, model: Model) -> None:
    made = client.messages.create(messages=QUESTION, tools=[WEATHER], tool_choice={"type": "none"}, **SHORT)
    assert made.content[0].text == model.generate(QUESTION, max_new_tokens=12, temperature=0).read()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "max_tokens": ({"max_tokens": 601}, "more than the 600"),
    "path": ({"messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]}]}, "data:image"),
    "link": ({"messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/x"}}]}]}, "does not fetch from"),
    "document": ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "document"),
    "image of the assistant": ({"messages": [*QUESTION, {"role": "assistant", "content": [picture()]}]}, "type image"),
    "call of the user": ({"messages": [{"role": "user", "content": [
        {"type": "tool_use", "id": "x", "name": "y", "input": {}}]}]}, "block of type tool_use"),
    "nameless choice": ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "no name"),
    "choice without tools": ({"tool_choice": {"type": "any"}}, "no tools are given"),
    "tool of Anthropic's": ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"),
    "budget": ({"thinking": {"type": "enabled"}}, "budget_tokens"),
    "thinking": ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking_budget"),
    "container": ({"extra_body": {"container": "x"}}, "container"),
    "context": ({"messages": [{"role": "user", "content": "x " * 2000}]}, "the context holds 1024"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_obeyed_is_a_sentence(client: Any, case: str, stream: bool) -> None:
    changes, words = WRONG[case]
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        client.messages.create(**{**SHORT, "messages": QUESTION, **changes}, stream=stream)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_errors_in_words_of_the_api(client: Any, address: str, model: Model) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**SHORT, "messages": QUESTION, "model": "other"})
    assert caught.value.body["error"]["type"] == "not_found_error"
    large = httpx.post(f"{address}/v1/messages", content=b"x" * ((1 << 20) + 1))
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    with served({"tiny": model}, api_keys=("secret",)) as locked:
        assert connected(locked, "secret").messages.create(messages=QUESTION, **SHORT).content
        with pytest.raises(anthropic.AuthenticationError) as caught:
            connected(locked, "guess").messages.create(messages=QUESTION, **SHORT)
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_a_failure_in_the_middle_is_an_event(client: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    run, left = model.decoder.run, iter(range(5))

    def failing(*given: Any) -> Any:
        if next(left, None) is None:
            raise MemoryError
        return run(*given)

    monkeypatch.setattr(model.decoder, "run", failing)
    with (
        pytest.raises(anthropic.APIStatusError, match="memory"),
        client.messages.stream(messages=[{"role": "user", "content": "Something new"}], **SHORT) as stream,
    ):
        stream.until_done()
