"""Answers as thoughts, text and calls: golden transcripts, any way to cut them, edge cases that peers document."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lensmith.runtimes.bundle.input_sections import Speech
from lensmith.runtimes.dialogue.dialogue_parser import DialogueParser, new_call_id
from lensmith.runtimes.dialogue.events import BrokenCall, Event, Reasoning, Text, ToolCall, merged, message_of
from lensmith.runtimes.prompt.speech import find_speech
from lensmith.runtimes.prompt.template import ChatTemplate

from tests.paths import DATA, ROOT

CONFIGS = ROOT / "exporters" / "synth" / "synth_configs"
TRANSCRIPTS = sorted((DATA / "transcripts").glob("*.json"))
XML, JSON = Speech(tool_calls="xml", reasoning=True), Speech(tool_calls="json", arguments="text", reasoning=True)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"}, "state": {"type": "string"}, "days": {"type": "integer"},
        "share": {"type": "number"}, "sure": {"type": "boolean"}, "where": {"type": "object"},
        "list": {"type": "array"}, "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]


def parsed(pieces: Sequence[str], speech: Speech = XML, *, thinking: bool = False, tools: Any = TOOLS) -> list[Event]:
    ids = (f"call_{number}" for number in itertools.count())
    parser = DialogueParser(speech, tools, thinking=thinking, make_id=lambda: next(ids))
    return merged([event for piece in pieces for event in parser.push(piece)] + parser.finish())


def cut(text: str, places: Sequence[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places})
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def call(name: str, values: Any, index: int = 0) -> ToolCall:
    return ToolCall(index, f"call_{index}", name, json.dumps(values, ensure_ascii=False))


def xml(*lines: str, name: str = "find") -> str:
    return "\n".join(["<tool_call>", f"<function={name}>", *lines, "</function>", "</tool_call>"])


def parameter(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>"


@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate((CONFIGS / name / "chat_template.jinja").read_text(encoding="utf-8"))


@cache
def speech_of(name: str) -> Speech:
    return find_speech(template_of(name))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcripts(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    speech, text = speech_of(case["template"]), case["text"]
    events = parsed([text], speech, thinking=case["thinking"], tools=case["tools"])
    message = message_of(events)
    calls = [(made["function"]["name"], json.loads(made["function"]["arguments"]))
             for made in message.pop("tool_calls", [])]  # fmt: skip
    expected = case["message"]
    assert calls == [tuple(made) for made in expected.pop("tool_calls", [])]
    assert message == expected
    assert [event.reason for event in events if isinstance(event, BrokenCall)] == case.get("broken", [])
    for pieces in (list(text), *(cut(text, range(0, len(text), step)) for step in (2, 3, 5, 8, 13))):
        assert parsed(pieces, speech, thinking=case["thinking"], tools=case["tools"]) == events


def test_a_message_in_the_next_prompt_is_what_the_model_wrote() -> None:
    """So that the next turn goes on from the states of this one."""
    case = json.loads(next(path for path in TRANSCRIPTS if path.stem == "nemotron_thinks_calls_two").read_text("utf-8"))
    template = template_of("nemotron-4b")
    message = message_of(parsed([case["text"]], find_speech(template), thinking=True, tools=case["tools"]))
    for made in message["tool_calls"]:
        made["function"]["arguments"] = json.loads(made["function"]["arguments"])
    asked = {"role": "user", "content": "Look"}
    prompt = template.render([asked], add_generation_prompt=True, tools=case["tools"])
    whole = template.render([asked, message, {"role": "tool", "content": "7"}], tools=case["tools"])
    assert whole.startswith(f"{prompt}{case['text']}<|im_end|>")


FRAGMENTS = st.sampled_from([
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=find>", "</function>", "<parameter=city>",
    "<parameter=days>", "<parameter=", "</parameter>", "\n", " ", "\n\n", "a", "7", "é", "<", ">", "{", "}", '"', "\\",
    '{"name": "find", "arguments": {"days": 1}}', '{"city": "\\\\"}}', "\\u00e9",
    '{"name": "find", "arguments": ', '{"city": "<tool_call>"}}',
    xml(parameter("city", "Oslo")), xml(parameter("days", "3"), parameter("list", "[1]")),
    "<tool_call>\n" + '{"name": "find", "arguments": {"city": "x"}}' + "\n</tool_call>", "the <tool_call> tag",
])  # fmt: skip
ANSWERS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=14).map("".join)


@settings(max_examples=600, deadline=None)
@given(ANSWERS, st.lists(st.integers(0, 300), max_size=40), st.booleans(), st.sampled_from([XML, JSON]))
@example(text="<tool_call><function=find><function={", places=[], thinking=False, speech=XML)
@example(text='<tool_call>{"name": "find"}<function=find></function>', places=[29], thinking=False, speech=JSON)
def test_any_cut_gives_the_same_events(text: str, places: list[int], thinking: bool, speech: Speech) -> None:
    whole = parsed([text], speech, thinking=thinking)
    assert parsed(cut(text, places), speech, thinking=thinking) == whole
    assert parsed(list(text), speech, thinking=thinking) == whole


@settings(max_examples=300, deadline=None)
@given(ANSWERS, st.booleans(), st.sampled_from([XML, JSON]))
def test_nothing_but_tags_and_space_is_lost(text: str, thinking: bool, speech: Speech) -> None:
    """Without calls, all words of an answer are in its thoughts or its text."""
    events = parsed([text], speech, thinking=thinking)
    if any(isinstance(event, ToolCall) for event in events):
        return
    told = "".join(event.text for event in events if not isinstance(event, ToolCall))
    assert "".join(bare(told).split()) == "".join(bare(text).split())


def bare(text: str) -> str:
    return text.replace("<think>", "").replace("</think>", "")


@settings(max_examples=200, deadline=None)
@given(ANSWERS)
def test_without_tools_and_thoughts_text_stays_as_it_is(text: str) -> None:
    assert parsed([text], Speech(), tools=None) == ([Text(text)] if text else [])
    if not text.lstrip().startswith("<think>"):
        assert parsed([text], XML, tools=None) == ([Text(text)] if text else [])


VALUES = st.fixed_dictionaries({}, optional={
    "city": st.text(max_size=30), "days": st.integers(), "share": st.floats(allow_nan=False, allow_infinity=False),
    "sure": st.booleans(), "maybe": st.none() | st.integers(),
    "list": st.lists(st.none() | st.text(max_size=5) | st.integers() | st.booleans(), max_size=4),
    "where": st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers(), max_size=3),
})  # fmt: skip
ASKED = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("name", ["tarn-2b", "nemotron-4b", "qwen3-vl-2b", "vqwen3-4b"])
@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=3), places=st.lists(st.integers(0, 900), max_size=9))
def test_what_a_template_writes_is_read_back(name: str, values: list[dict[str, Any]], places: list[int]) -> None:
    """Calls as the template shows them to the model, typed by their schema, are the calls."""
    template, speech = template_of(name), speech_of(name)
    if any("\x1b" in str(each) or "</parameter>" in str(each) for each in values):
        return
    made = [{"type": "function", "function": {"name": "find", "arguments": each}} for each in values]
    said = {"role": "assistant", "content": "", "tool_calls": made}
    text = template.render([*ASKED, said], tools=TOOLS)
    answer = text[text.rindex("<|im_start|>assistant\n") :].removeprefix("<|im_start|>assistant\n")
    answer = answer.removesuffix("<|im_end|>\n")
    for pieces in (cut(answer, places), list(answer)):
        assert parsed(pieces, speech) == [call("find", each, index) for index, each in enumerate(values)]


# Decided as vLLM's `qwen3_coder` tests have it: types, missing tags, text around calls, several calls in one piece.
CUT = "<tool_call>\n<function=find>\n<parameter=city>\nwrite " + xml(parameter("days", "1"))
CODER: dict[str, tuple[str, list[Event]]] = {
    "no call": ("This is a test without tools", [Text("This is a test without tools")]),
    "several lines": (xml(parameter("where", '{"width": 10, \n "height": 20}')),
                      [call("find", {"where": {"width": 10, "height": 20}})]),
    "text in front": ("Sure!" + xml(parameter("city", "Dallas")), [Text("Sure!"), call("find", {"city": "Dallas"})]),
    "parallel": (xml(parameter("city", "Dallas")) + "\n" + xml(parameter("city", "Orlando")),
                 [call("find", {"city": "Dallas"}), call("find", {"city": "Orlando"}, 1)]),
    "missing end of a parameter": (
        "Let me check:\n<tool_call>\n<function=find>\n<parameter=city>\nDallas\n<parameter=state>\nTX\n</parameter>\n"
        "</function>\n</tool_call>", [Text("Let me check:"), call("find", {"city": "Dallas", "state": "TX"})]),
    "missing end of the last parameter": (
        xml("<parameter=city>\nDallas"), [call("find", {"city": "Dallas"})]),
    "missing end of the function": (
        "<tool_call>\n<function=find>\n<parameter=city>\nx\n</parameter>\n</tool_call>", [call("find", {"city": "x"})]),
    "missing tool_call": (
        "Now:\n<function=find>\n" + parameter("city", "x") + "\n</function>\n</tool_call>",
        [Text("Now:"), call("find", {"city": "x"})]),
    "no parameters": (xml(), [call("find", {})]),
    "no line ends": ("<tool_call><function=find><parameter=city>x</parameter></function></tool_call>",
                     [call("find", {"city": "x"})]),
    "JSON words in an array": (xml(parameter("list", '["a", 1, true, null]')),
                               [call("find", {"list": ["a", 1, True, None]})]),
    "Python words in an array": (xml(parameter("list", "['a', True, None]")),
                                 [call("find", {"list": ["a", True, None]})]),
    "null of an optional": (xml(parameter("maybe", "null")), [call("find", {"maybe": None})]),
    "unknown function": (xml(parameter("n", "5"), name="other"), [call("other", {"n": "5"})]),
    "unknown parameter": (xml(parameter("n", "5")), [call("find", {"n": "5"})]),
    "no number": (xml(parameter("days", "soon")), [call("find", {"days": "soon"})]),
    "string that looks like a number": (xml(parameter("city", "007")), [call("find", {"city": "007"})]),
    "empty value": (xml(parameter("city", "")), [call("find", {"city": ""})]),
    "lines at the ends of a value": (xml(parameter("city", "\nx\n")), [call("find", {"city": "\nx\n"})]),
    "key given twice": (xml(parameter("city", "x"), parameter("city", "y")), [call("find", {"city": "y"})]),
    "text between and behind": (
        "a " + xml() + " b " + xml() + "\n c", [Text("a"), call("find", {}), Text("  b"), call("find", {}, 1),
                                                Text(" \n c")]),
    "tags in a value": (
        xml(parameter("city", "<tool_call> </tool_call> </parameter> x </function> <think> <b>")),
        [call("find", {"city": "<tool_call> </tool_call> </parameter> x </function> <think> <b>"})]),
    "a call in a value": (
        xml(parameter("city", "write " + xml(parameter("a", "1")))),
        [call("find", {"city": "write " + xml(parameter("a", "1"))})]),
    "its own key in a value": (
        xml("<parameter=city>\na\n<parameter=city>\nb\n</parameter>"),
        [call("find", {"city": "a\n<parameter=city>\nb"})]),
    "a call in a value that is cut off": (
        CUT + "\nand then", [BrokenCall(CUT, "it is cut off"), Text("\nand then")]),
    "an opening tag in a value": (
        xml(parameter("city", "the <tool_call> tag")) + "\n" + xml(parameter("city", "b")),
        [call("find", {"city": "the <tool_call> tag"}), call("find", {"city": "b"}, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CODER)
def test_xml_calls(name: str) -> None:
    text, events = CODER[name]
    assert parsed([text]) == events
    assert parsed(list(text)) == events


# As vLLM's `hermes` tests and llama.cpp's test-chat have it, but that calls which are none stay text in one piece.
def tagged(inner: str) -> str:
    return f"<tool_call>\n{inner}\n</tool_call>"


ONE = '{"name": "find", "arguments": {"sure": true}}'
TAG_INSIDE = '{"name": "find", "arguments": {"city": "</tool_call>"}'
HERMES: dict[str, tuple[str, list[Event]]] = {
    "call": (tagged(ONE), [call("find", {"sure": True})]),
    "to the end": (f"<tool_call>\n{ONE}", [call("find", {"sure": True})]),
    "brace missing": (f"<tool_call>\n{ONE[:-1]}", [BrokenCall(f"<tool_call>\n{ONE[:-1]}", "it is cut off")]),
    "brace missing within the tags": (tagged(ONE[:-1]), [BrokenCall(tagged(ONE[:-1]), "its JSON ends too early")]),
    "brace missing behind a tag in a string": (
        tagged(TAG_INSIDE), [BrokenCall(tagged(TAG_INSIDE), "its JSON ends too early")]),
    "serialized arguments": (tagged('{"name": "find", "arguments": "{\\"city\\": \\"x\\"}"}'),
                             [call("find", {"city": "x"})]),
    "bare string": (tagged('{"name": "find", "arguments": "hello"}'),
                    [BrokenCall(tagged('{"name": "find", "arguments": "hello"}'), "its arguments are no object")]),
    "no arguments": (tagged('{"name": "find"}'), [call("find", {})]),
    "null": (tagged('{"name": "find", "arguments": null}'), [call("find", {})]),
    "arguments first": (tagged('{"arguments": {"days": 1}, "name": "find"}'), [call("find", {"days": 1})]),
    "parameters": (tagged('{"name": "find", "parameters": {"days": 1}}'), [call("find", {"days": 1})]),
    "as OpenAI writes them": (tagged('{"type": "function", "function": ' + ONE + "}"), [call("find", {"sure": True})]),
    "no name": (tagged('{"arguments": {}}'), [BrokenCall(tagged('{"arguments": {}}'), "it names no function")]),
    "a list": (tagged("[1]"), [Text(tagged("[1]"))]),
    "text": ("Use the <tool_call> tag.", [Text("Use the <tool_call> tag.")]),
    "tag alone": ("<tool_call>", [Text("<tool_call>")]),
    "no line ends": (f"Sure.<tool_call>{ONE}</tool_call>", [Text("Sure."), call("find", {"sure": True})]),
    "two": (f"<tool_call>{ONE}</tool_call><tool_call>{ONE}</tool_call>",
            [call("find", {"sure": True}), call("find", {"sure": True}, 1)]),
    "two in one pair": (f"<tool_call>\n{ONE}\n{ONE}\n</tool_call>",
                        [call("find", {"sure": True}), call("find", {"sure": True}, 1)]),
    "first without its end": (f"<tool_call>{ONE}\n<tool_call>{ONE}</tool_call>",
                              [call("find", {"sure": True}), call("find", {"sure": True}, 1)]),
    "tags, braces and quotes in a string": (
        tagged('{"name": "find", "arguments": {"city": "</tool_call> } \\" \\\\"}}'),
        [call("find", {"city": '</tool_call> } " \\'})]),
    "line end in a string": (tagged('{"name": "find", "arguments": {"city": "a\nb"}}'),
                             [call("find", {"city": "a\nb"})]),
    "NaN": (tagged('{"name": "find", "arguments": {"share": NaN}}'),
            [BrokenCall(tagged('{"name": "find", "arguments": {"share": NaN}}'), "it is not valid JSON")]),
    "half a character": (tagged('{"name": "find", "arguments": {"city": "\\ud800"}}'),
                         [ToolCall(0, "call_0", "find", '{"city": "\\ud800"}')]),
    "XML from a model of JSON": (xml(parameter("days", "1")), [call("find", {"days": 1})]),
    "a good one behind a broken one": (
        tagged('{"name": }') + tagged(ONE),
        [BrokenCall(tagged('{"name": }'), "it is not valid JSON"), call("find", {"sure": True})]),
}  # fmt: skip


@pytest.mark.parametrize("name", HERMES)
def test_json_calls(name: str) -> None:
    text, events = HERMES[name]
    assert parsed([text], JSON) == events
    assert parsed(list(text), JSON) == events


# As vLLM's `qwen3` reasoning tests and llama.cpp's test_reasoning have it: (text, opened by the prompt, events).
CALL = xml(parameter("city", "x"))
FOUND = call("find", {"city": "x"})
THOUGHTS: dict[str, tuple[str, bool, list[Event]]] = {
    "opened by the prompt": ("Cogito</think>Ergo sum", True, [Reasoning("Cogito"), Text("Ergo sum")]),
    "opened by the answer": ("<think>Cogito</think>Ergo sum", False, [Reasoning("Cogito"), Text("Ergo sum")]),
    "opened by both": ("<think>Cogito</think>Ergo sum", True, [Reasoning("Cogito"), Text("Ergo sum")]),
    "not opened": ("Cogito</think>Ergo sum", False, [Text("Cogito</think>Ergo sum")]),
    "behind white space": ("\n <think>\na\n</think>\n\nb", False, [Reasoning("a"), Text("b")]),
    "several lines": ("<think>a\nb</think>c\nd", False, [Reasoning("a\nb"), Text("c\nd")]),
    "nothing behind": ("a</think>", True, [Reasoning("a")]),
    "space behind": ("a</think>\n\n", True, [Reasoning("a")]),
    "never closed": ("a\nb\n", True, [Reasoning("a\nb")]),
    "never closed, opened by the answer": ("<think>a", False, [Reasoning("a")]),
    "empty": ("\n</think>\n\nb", True, [Text("b")]),
    "empty, opened by the answer": ("<think>\n\n</think>\n\nb", False, [Text("b")]),
    "nothing at all": ("", True, []),
    "half a tag at the end": ("a</thi", True, [Reasoning("a</thi")]),
    "half a tag that opens": ("<thi", False, [Text("<thi")]),
    "a word like the tag": ("<thinking> a", False, [Text("<thinking> a")]),
    "the tag within the text": ("Write <think> here", False, [Text("Write <think> here")]),
    "thoughts once": ("a</think>b<think>c</think>", True, [Reasoning("a"), Text("b<think>c</think>")]),
    "a call behind": (f"a\n</think>\n\n{CALL}", True, [Reasoning("a"), FOUND]),
    "a call in thoughts that are not closed": (f"a.\n\n{CALL}", True, [Reasoning("a."), FOUND]),
    "opened by the answer and not closed": (f"<think>a.\n\n{CALL}", False, [Reasoning("a."), FOUND]),
    "a call in thoughts, nothing behind": (f"a\n{CALL}\n</think>\n", True, [Reasoning("a"), FOUND]),
    "a draft": (f"a\n{CALL}\n</think>\nb", True, [Reasoning(f"a\n{CALL}"), Text("b")]),
    "a draft and the call": (f"a {CALL} b</think>{CALL}", True, [Reasoning(f"a {CALL} b"), FOUND]),
    "a tag in thoughts": ("a <tool_call> b</think>c", True, [Reasoning("a <tool_call> b"), Text("c")]),
    "half a call in thoughts": (f"a {CALL[:40]}", True, [Reasoning(f"a {CALL[:40]}")]),
    "two calls in thoughts": (f"a {CALL} b {CALL}", True,
                              [Reasoning("a"), FOUND, Reasoning(" b"), call("find", {"city": "x"}, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts(name: str) -> None:
    text, thinking, events = THOUGHTS[name]
    assert parsed([text], thinking=thinking) == events
    assert parsed(list(text), thinking=thinking) == events


MALFORMED = {
    "no name": ("<tool_call>\n<function=>\n</function>\n</tool_call>", "it names no function"),
    "a line in the name": ("<tool_call>\n<function=a\nb>\n</function>\n</tool_call>", "its function has no name"),
    "text outside": ("<tool_call>\n<function=find>\nhello\n</function>\n</tool_call>",
                     "there is text outside of its parameters"),
    "cut in a tag": ("<tool_call>\n<function=find>\n<param", "it is cut off"),
    "cut in a name": ("<tool_call>\n<function=fi", "it is cut off"),
    "cut in a value": ("<tool_call>\n<function=find>\n<parameter=city>\nx\n</parameter", "it is cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_call_stays_text(name: str) -> None:
    text, reason = MALFORMED[name]
    events = parsed([f"Well.\n{text}"])
    assert events == [Text("Well.\n"), BrokenCall(text, reason)]
    assert message_of(events) == {"role": "assistant", "content": f"Well.\n{text}"}


def test_nothing_of_a_tag_comes_out_early() -> None:
    parser = DialogueParser(XML, TOOLS, thinking=True)
    told = []
    for letter in f"a</think>b{CALL}c":
        told += parser.push(letter)
    assert not any("<" in event.text for event in told if isinstance(event, Reasoning | Text))
    assert [type(event) for event in merged(told)] == [Reasoning, Text, ToolCall, Text]
    assert not parser.thinking


def test_text_comes_out_as_soon_as_it_is_certain() -> None:
    parser = DialogueParser(XML, TOOLS, thinking=True)
    assert parser.thinking
    assert parser.push("Hm, <too") == [Reasoning("Hm,")]
    assert parser.push("th>") == [Reasoning(" <tooth>")]
    assert parser.push("</think>Yes ") == [Text("Yes")]
    assert parser.push("<t") == []
    assert parser.push("r>") == [Text(" <tr>")]


def test_thoughts_begin_and_end_with_their_tags() -> None:
    parser = DialogueParser(XML)
    seen = []
    for piece in (" ", "<thi", "nk>", "a", "</thin", "k>", "b"):
        parser.push(piece)
        seen.append(parser.thinking)
    assert seen == [False, False, True, True, True, False, False]


def test_ids_are_unlike_any_other() -> None:
    assert len({new_call_id() for _ in range(100)}) == 100
    assert new_call_id().startswith("call_")


@pytest.mark.parametrize("text", [
    "<tool_call>\n<function=find>\n<parameter=city>\n" + "</parameter> x " * 4000,
    '<tool_call>\n{"name": "' + '\\"' * 20000, "<tool_call>" * 5000, "<" * 40000, "{" * 40000,
    "<tool_call>" + "{" * 40000, "<tool_call>" + '{"a":' * 20000 + "1" + "}" * 20000,
])  # fmt: skip
def test_hostile_answers_end_soon(text: str) -> None:
    pieces = cut(text, range(0, len(text), 7))
    told = message_of(parsed(pieces))
    assert told["content"].strip() == text.strip()
