"""Conversations with tools as OpenAI's interface writes them: ids of transformers, given what the template expects."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lensmith.targets.errors import InputError

from tests.runtimes.prompt.test_messages import READ, TEMPLATES, builder, hf_ids

TOOLS = [{"type": "function", "function": {"name": "zoom", "parameters": {"type": "object", "properties": {"x": {}}}}}]
ARGUMENTS = st.dictionaries(
    st.sampled_from(["x", "y", "naïve key"]),
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), max_size=3,
)  # fmt: skip
TEXT = st.sampled_from(["Hello", "ä\n中", "a <think> b", "</tool_call>", "{}"])


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """With arguments as objects, and ids."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": draw(TEXT)}]
    for turn in range(draw(st.integers(1, 2))):
        made = draw(st.lists(ARGUMENTS, min_size=1, max_size=3))
        calls = [{"id": f"call_{turn}{number}", "type": "function", "function": {"name": "zoom", "arguments": each}}
                 for number, each in enumerate(made)]  # fmt: skip
        said = {"role": "assistant", "content": draw(st.just("") | TEXT), "tool_calls": calls}
        if draw(st.booleans()):
            said["reasoning_content"] = draw(TEXT)
        messages += [said, *({"role": "tool", "tool_call_id": call["id"], "content": draw(TEXT)} for call in calls)]
    return messages


def as_openai(messages: list[dict[str, Any]], data: st.DataObject) -> list[dict[str, Any]]:
    """The same as a client of OpenAI keeps it: arguments as text, null for what is not there, results in any order."""
    told = copy.deepcopy(messages)
    for message in told:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        if message["role"] == "assistant":
            message |= {"content": message["content"] or None, "refusal": None, "audio": None, "annotations": [],
                        "function_call": None}  # fmt: skip
    made: list[dict[str, Any]] = []
    while told:
        results = next((n for n, message in enumerate(told) if message["role"] != "tool"), len(told))
        made += data.draw(st.permutations(told[:results])) if results else [told[0]]
        told = told[max(results, 1) :]
    return made


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_ids_are_those_of_transformers(name: str, data: st.DataObject) -> None:
    messages = data.draw(histories())
    if name == "qwen3_vl":
        messages = [
            {key: value for key, value in message.items() if key != "reasoning_content"} for message in messages
        ]
    variables: dict[str, Any] = {"tools": TOOLS}
    if "enable_thinking" in READ[name]:
        variables["enable_thinking"] = data.draw(st.booleans())
    expected = hf_ids(name, messages, {**variables, "add_generation_prompt": True})
    assert expected is not None
    for told in (messages, as_openai(messages, data)):
        before = copy.deepcopy(told)
        assert builder(name).build(told, **variables).ids.tolist() == expected
        assert told == before  # the caller's own


def said(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": list(calls)}]


def call(arguments: Any, number: str = "1") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": "zoom", "arguments": arguments}}


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl"])
@pytest.mark.parametrize("nothing", ["", " ", None, {}, "{}"])
def test_no_arguments(name: str, nothing: Any) -> None:
    assert builder(name).render(said(call(nothing))) == builder(name).render(said(call({})))


@pytest.mark.parametrize("bare", [True, False])
def test_bare_calls(bare: bool) -> None:
    made = {"name": "zoom", "arguments": '{"x": 5}'} if bare else call('{"x": 5}')
    assert "<function=zoom>\n<parameter=x>\n5\n</parameter>" in builder("qwen3_5").render(said(made))


@pytest.mark.parametrize("arguments", ["{", "5", "[1]", '"a"', "{'a': 1}", 5, [1]])
def test_arguments_that_are_no_object(arguments: Any) -> None:
    words = r"the message 1 calls the tool 'zoom' with the arguments .*; expected an object, or the text of one in JSON"
    with pytest.raises(InputError, match=words):
        builder("qwen3_5").render(said(call(arguments)))


def test_a_result_of_a_call_that_was_not_made() -> None:
    result = {"role": "tool", "tool_call_id": "9", "content": "b"}
    with pytest.raises(InputError, match=r"the message 2 is the result of the call '9', which .*; it made '1', '2'"):
        builder("qwen3_vl").render([*said(call({}), call({}, "2")), result])


def test_results_and_calls_without_ids() -> None:
    bare = {"name": "zoom", "arguments": {}}
    text = builder("qwen3_5").render([*said(bare), {"role": "tool", "content": "only"}])
    assert "only" in text


def test_results_that_name_no_call_stay_in_their_order() -> None:
    results = [{"role": "tool", "content": "first"}, {"role": "tool", "tool_call_id": "1", "content": "second"}]
    text = builder("qwen3_5").render([*said(call({}), call({}, "2")), *results])
    assert text.index("first") < text.index("second")
