"""Answers held to a form, and thoughts to a budget: with random logits and with every engine."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes import GenerationOptions, Model
from lensmith.runtimes.bundle.input_sections import Speech
from lensmith.runtimes.dialogue.dialogue_parser import DialogueParser
from lensmith.runtimes.dialogue.events import Reasoning, Text, ToolCall, merged
from lensmith.runtimes.generation.call_watch import CallWatch, open_watch
from lensmith.runtimes.generation.constraints import Vocabulary
from lensmith.runtimes.generation.guide import Guide, open_guide
from lensmith.runtimes.generation.sampling import Sampler, SamplingOptions
from lensmith.runtimes.generation.streaming import TextStream
from lensmith.runtimes.generation.tool_grammar import answer_or_calls, call_form
from lensmith.runtimes.prompt.prompt_builder import PromptBuilder, open_prompt
from lensmith.runtimes.prompt.prompt_parts import PromptSpec
from lensmith.targets.errors import InputError
from tokenizers import Tokenizer

from tests.helpers.extras import load, run_without
from tests.paths import TINY

pytest.importorskip("llguidance", reason="needs lensmith[constrain]")

ENDS = ("<|im_end|>", "<|endoftext|>")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
                   "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
    "required": ["name", "age"], "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "zoom", "parameters": {
        "type": "object", "$defs": {"Side": {"type": "integer", "minimum": 0, "maximum": 9}},
        "properties": {"x": {"$ref": "#/$defs/Side"}, "why": {"type": "string"},
                       "unit": {"enum": ["px", "cm"]}, "flip": {"type": ["boolean", "null"]}},
        "required": ["x"], "additionalProperties": False}}},
    {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
]  # fmt: skip


@cache
def prompts(family: str = "qwen3_5") -> PromptBuilder:
    token = {"image_token": "<image>"} if family == "llava" else {}
    nothing = {"video_token": None, "vision_start_token": None, "vision_end_token": None} if family == "llava" else {}
    return open_prompt(TINY / family, PromptSpec(**token, **nothing))  # type: ignore[arg-type]


def ends(made: PromptBuilder) -> list[int]:
    return [number for end in ENDS if (number := made.tokenizer.token_to_id(end)) is not None]


@cache
def vocabulary(family: str = "qwen3_5") -> Vocabulary:
    return Vocabulary(prompts(family).tokenizer, 900, ends(prompts(family)))


def told(guide: Guide | None, seed: int, *, most: int = 400, family: str = "qwen3_5") -> tuple[str, bool]:
    """The text of an answer of random logits, and whether it came to its end."""
    made, random = prompts(family), np.random.default_rng(seed)
    sampler, stream = Sampler(SamplingOptions(temperature=1.0, seed=seed)), TextStream(made.tokenizer)
    assert guide is not None
    text = ""
    for _ in range(most):
        logits = random.normal(0, 3, 900).astype(np.float32)
        logits[ends(made)] += 4  # so that what may end soon does
        token = guide.choose(sampler, logits, np.zeros(0, np.int64))
        if token in ends(made):
            return text + stream.finish(), True
        text += stream.push(token)
        if guide.complete:
            return text + stream.finish(), True
    return text, False


def guided(option: str, value: Any, *, thinking: bool | None = False, budget: int | None = None) -> Guide | None:
    form = vocabulary().form(option, value)
    return open_guide(prompts(), thinking, budget, form, ends(prompts()))


def is_person(text: str) -> bool:
    made = json.loads(text)
    assert set(made) <= {"name", "age", "tags"}
    assert 0 <= made["age"] <= 120
    return len(made["name"]) <= 5 and all(tag in "ab" for tag in made.get("tags", []))


WORDS = ["yes", "no", 'a "quoted"\nline', "中"]
FORMS: dict[str, tuple[str, Any, Callable[[str], Any]]] = {
    "schema": ("json_schema", PERSON, is_person), "schema as text": ("json_schema", json.dumps(PERSON), is_person),
    "any JSON": ("json_schema", True, lambda text: json.loads(text) or True),
    "regex": ("regex", r"[a-c]{2}-[0-9]+(x|ä)", re.compile(r"[a-c]{2}-[0-9]+(x|ä)").fullmatch),
    "choices": ("choices", WORDS, WORDS.__contains__),
    "grammar": ("grammar", 'start: word (", " word)*\nword: /[a-z]{1,4}/',
                re.compile(r"[a-z]{1,4}(, [a-z]{1,4})*").fullmatch),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_any_logits_give_the_form(name: str, seed: int) -> None:
    option, value, fits = FORMS[name]
    text, ended = told(guided(option, value), seed)
    assert not ended or fits(text)
    assert ended or name == "any JSON"  # which may go on


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32), thinking=st.booleans(), budget=st.integers(0, 20))
def test_a_form_behind_thoughts(seed: int, thinking: bool, budget: int) -> None:
    """The thoughts are free, end in time, and the form is that of what comes behind them."""
    text, ended = told(guided("json_schema", PERSON, thinking=thinking or None, budget=budget), seed)
    assert ended
    parser = DialogueParser(prompts().speech, thinking=thinking)
    events = merged([*parser.push(text), *parser.finish()])
    said = [event for event in events if isinstance(event, Text)]
    assert len(said) == 1
    assert is_person(said[0].text)
    assert all(isinstance(event, Reasoning) for event in events if event not in said)
    assert thinking or not text.startswith("\n")


def test_thoughts_that_the_model_ends_are_followed_by_the_form() -> None:
    guide, sampler = guided("choices", ["yes"], thinking=True), Sampler(SamplingOptions())
    wanted = iter(prompts().tokenizer.encode("a </think>", add_special_tokens=False).ids)
    text, stream = "", TextStream(prompts().tokenizer)
    assert guide is not None
    while not guide.complete:
        logits = np.zeros(900, np.float32)
        logits[ends(prompts())] = 5  # it would rather end
        if (token := next(wanted, None)) is not None:
            logits[token] = 9
        text += stream.push(guide.choose(sampler, logits, np.zeros(0, np.int64)))
    assert text == "a </think>\n\nyes"


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize("choice", ["required", "zoom", {"type": "function", "function": {"name": "zoom"}}])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_calls_of_any_logits_are_right_by_their_schema(form: str, choice: Any, seed: int) -> None:
    speech = Speech(tool_calls=form, reasoning=True)  # type: ignore[arg-type]
    grammar = call_form(choice, False, TOOLS, speech)
    assert grammar is not None
    guide = open_guide(prompts(), False, None, vocabulary().form_of("tool_choice", grammar), ends(prompts()))
    text, ended = told(guide, seed, most=1500)
    if not ended:
        return  # a long text among the arguments
    ids = (f"call_{number}" for number in itertools.count())
    parser = DialogueParser(speech, TOOLS, make_id=lambda: next(ids))
    events = [*parser.push(text), *parser.finish()]
    assert [type(event) for event in events] == [ToolCall]
    call = events[0]
    assert isinstance(call, ToolCall)
    arguments = json.loads(call.arguments)
    if call.name == "stop":
        assert (choice, arguments) == ("required", {})
        return
    assert 0 <= arguments.pop("x") <= 9
    assert arguments.pop("unit", "px") in ("px", "cm")
    assert arguments.pop("flip", None) in (True, False, None)
    assert isinstance(arguments.pop("why", ""), str)
    assert not arguments


@pytest.mark.parametrize("opening", ["<tool_call>", "<function=", "none"])
@pytest.mark.parametrize("form", ["xml", "json"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1 << 32), thinking=st.booleans())
def test_calls_that_a_free_model_begins_are_right_by_their_schema(
    form: str, opening: str, seed: int, thinking: bool
) -> None:
    """It says what it likes until it begins a call, which then has random logits; behind it it is free again."""
    speech = Speech(tool_calls=form, reasoning=True)  # type: ignore[arg-type]
    made = replace(prompts().spec, speech=speech)
    builder = PromptBuilder(prompts().tokenizer, prompts().template.source, made)
    watch = open_watch("auto", TOOLS, speech, vocabulary, builder.tokenizer)
    guide = open_guide(builder, thinking, None, None, ends(builder), watch)
    assert guide is not None
    assert watch is not None
    head = ("I think of a <tool_call> here.</think>\n\n" if thinking else "") + "Well < tool_call, "
    head += {"none": "<tool_call", "<function=": "so\n<function="}.get(opening, opening)
    behind = "<tool_call no, "
    sampler, random = Sampler(SamplingOptions(temperature=1.0, seed=seed)), np.random.default_rng(seed)
    wanted, stream, text = (
        iter(builder.tokenizer.encode(head, add_special_tokens=False).ids),
        TextStream(builder.tokenizer),
        "",
    )
    ended = False
    for _ in range(1500):
        logits = random.normal(0, 3, 900).astype(np.float32)
        if (token := next(wanted, None)) is not None:
            logits[token] = 99
        elif watch.form is None and not ended:
            ended = True
            wanted = iter(builder.tokenizer.encode(behind, add_special_tokens=False).ids)
            logits[next(wanted)] = 99
        elif ended:
            break
        text += stream.push(guide.choose(sampler, logits, np.zeros(0, np.int64)))
    assert text.startswith(head)
    parser = DialogueParser(speech, TOOLS, thinking=thinking)
    events = merged([*parser.push(text), *parser.finish()])
    calls = [event for event in events if isinstance(event, ToolCall)]
    if opening == "none" or (form, opening) == ("json", "<function="):  # which begins no call in JSON
        assert (text, calls) == (head + behind, [])
        return
    assert ended or not calls  # a long text among the arguments
    for call in calls:
        arguments = json.loads(call.arguments)
        assert call.name in ("zoom", "stop")
        assert call.name == "stop" or (0 <= arguments.pop("x") <= 9 and arguments.pop("unit", "px") in ("px", "cm"))
        assert arguments.pop("flip", None) in (True, False, None)
        assert isinstance(arguments.pop("why", ""), str)
        assert not arguments
    assert len(calls) == ended
    assert not ended or text.endswith(behind)


def test_tools_that_are_strict_are_obeyed_or_refused() -> None:
    def watch(strict: bool | None, schema: dict[str, Any]) -> CallWatch | None:
        tool = {"type": "function", "function": {"name": "zoom", "strict": strict, "parameters": schema}}
        return open_watch(None, [tool], Speech(tool_calls="json"), vocabulary, prompts().tokenizer)

    impossible = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InputError, match=r"the schema of the tools cannot be obeyed: .*uniqueItems"):
        watch(True, impossible)
    free = watch(False, impossible)
    assert free is not None
    for token in prompts().tokenizer.encode('<tool_call>{"name":', add_special_tokens=False).ids:
        free.push(token, prompts().tokenizer.id_to_token(token) or "")
        assert free.form is None
    assert watch(True, {"type": "object", "properties": {}}) is not None
    assert open_watch("auto", TOOLS, Speech(), vocabulary, prompts().tokenizer) is None  # no form that is known
    assert open_watch("required", TOOLS, Speech(tool_calls="xml"), vocabulary, prompts().tokenizer) is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_an_answer_of_a_form_or_calls(seed: int) -> None:
    speech = Speech(tool_calls="xml", reasoning=True)
    grammar = answer_or_calls({"enum": ["yes", 5]}, TOOLS, speech)
    guide = open_guide(prompts(), False, None, vocabulary().form_of("json_schema", grammar), ends(prompts()))
    text, ended = told(guide, seed, most=1500)
    parser = DialogueParser(speech, TOOLS)
    events = [*parser.push(text), *parser.finish()]
    if ended:
        assert text in ('"yes"', "5") or (events and all(isinstance(event, ToolCall) for event in events))


def test_several_calls_where_the_model_wants_them() -> None:
    one = "<tool_call>\n<function=stop>\n</function>\n</tool_call>"
    for parallel, text in ((None, f"{one}\n{one}"), (True, f"{one}\n{one}"), (False, one)):
        grammar = call_form("required", parallel, TOOLS[1:], Speech(tool_calls="xml"))
        form = vocabulary().form_of("tool_choice", grammar or "")
        for token in prompts().tokenizer.encode(text, add_special_tokens=False).ids:
            form.push(token)
        assert form.complete is (parallel is False)


DEEP: dict[str, Any] = {}
for _ in range(150):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
BAD: list[tuple[str, Any, str]] = [
    ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "json_schema cannot be obeyed: Unsatisfiable"),
    ("json_schema", False, "no answer fits"), ("json_schema", {"type": "nonsense"}, "Invalid type"),
    ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"), ("json_schema", "{", "is no JSON text"),
    ("json_schema", [1], "expected a schema"), ("json_schema", 5, "expected a schema"),
    ("json_schema", {"const": {1}}, "holds what JSON cannot say"),
    ("json_schema", DEEP, "recursion limit"),
    ("json_schema", {"$ref": "#/$defs/no"}, "json_schema cannot be obeyed"),
    ("regex", "([", "regex cannot be obeyed"), ("regex", "", "expected a text"), ("regex", 5, "expected a text"),
    ("regex", r"[^\s\S]", "regex cannot be obeyed"),
    ("choices", [], "expected a list of texts"), ("choices", "yes", "expected a list"),
    ("choices", [""], "expected a list"),
    ("choices", ["a", 5], "expected a list"), ("grammar", "start: foo", "grammar cannot be obeyed"),
    ("grammar", "nonsense", "grammar cannot be obeyed"), ("grammar", " ", "expected a text"),
    ("grammar", "start: /a/\n" + "# " + "x" * (1 << 20), "at most 1048576"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value", "words"), BAD, ids=lambda each: str(each)[:30])
def test_impossible_forms_are_one_sentence(option: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        vocabulary().form(option, value)
    assert "\n" not in str(caught.value)


CHOICES: list[tuple[Any, Any, Any, Speech, str]] = [
    ("zom", None, TOOLS, Speech(tool_calls="xml"), "did you mean 'zoom'"),
    (5, None, TOOLS, Speech(tool_calls="xml"), "expected 'auto', 'none', 'required' or a tool's name"),
    ({"type": "function"}, None, TOOLS, Speech(tool_calls="xml"), "expected 'auto'"),
    ("required", None, None, Speech(tool_calls="xml"), "no tools are given"),
    ("required", None, TOOLS, Speech(), "no form of calls"),
    (None, False, TOOLS, Speech(), "parallel_tool_calls False"),
    ("required", "no", TOOLS, Speech(tool_calls="xml"), "parallel_tool_calls is 'no'"),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "parallel", "tools", "speech", "words"), CHOICES)
def test_choices_that_cannot_be(choice: Any, parallel: Any, tools: Any, speech: Speech, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call_form(choice, parallel, tools, speech)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_free_choice(choice: Any) -> None:
    assert call_form(choice, None, TOOLS, Speech()) is None


def test_contradictions() -> None:
    with pytest.raises(InputError, match="regex and choices ask for two forms"):
        GenerationOptions(regex="a", choices=["a"])
    with pytest.raises(InputError, match="ignore_eos goes on"):
        GenerationOptions(regex="a", ignore_eos=True)
    with pytest.raises(InputError, match="thinking_budget is -1"):
        GenerationOptions(thinking_budget=-1)


def test_tokens_are_spelled_as_answers_are() -> None:
    """`<tool_call>` and `</think>` are texts, what ends an answer is none."""
    for family in ("qwen3_5", "llava"):
        form = vocabulary(family).form("regex", "<tool_call>.{1,3}</think>")
        for token in prompts(family).tokenizer.encode("<tool_call>ä中</think>", add_special_tokens=False).ids:
            form.push(token)
        assert form.complete


def test_tags_that_are_special_tokens_are_text_too() -> None:
    content = json.loads((TINY / "qwen3_5" / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = True
    tokenizer = Tokenizer.from_str(json.dumps(content))
    template = (TINY / "qwen3_5" / "chat_template.jinja").read_text(encoding="utf-8")
    made = PromptBuilder(tokenizer, template, PromptSpec())
    ids = tokenizer.encode("a</think><tool_call>b</tool_call><|im_end|>", add_special_tokens=False).ids
    for kept, text in ((made.tags, "a</think><tool_call>b</tool_call>"), (frozenset[int](), "ab")):
        stream = TextStream(tokenizer, kept=kept)
        assert "".join(map(stream.push, ids)) + stream.finish() == text
    form = Vocabulary(tokenizer, 900, ends(made), made.tags).form("regex", ".</think><tool_call>b</tool_call>")
    for token in ids[:-1]:
        form.push(token)
    assert form.complete
    plain = PromptBuilder(tokenizer, template, PromptSpec(speech=Speech()))
    assert (plain.tags, len(made.tags)) == (frozenset(), 4)


@pytest.fixture(scope="module", params=["qwen3-vl-2b", "nemotron-4b", "gguf"])
def model(request: pytest.FixtureRequest, made: Callable[[str], Path]) -> Model:
    if request.param == "gguf":
        pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
    found = load(made(request.param), threads=1, context=1024, device="cpu")
    return found


def test_every_engine_obeys(model: Model) -> None:
    thinks: dict[str, Any] = {"enable_thinking": False} if model.prompts.speech.reasoning else {}
    sampled: dict[str, Any] = {"temperature": 1.5, "seed": 3, "top_k": 20, "repetition_penalty": 1.2}
    for chosen in ({}, sampled):
        answer = model.ask("Who?", choices=["yes", "no"], **chosen, **thinks)
        assert answer.read() in ("yes", "no")
        assert answer.finish_reason in ("stop", "eos")
        answer = model.ask("Who?", regex="[a-f]{3,8}!", stop=["!"], **chosen, **thinks)
        assert re.fullmatch("[a-f]{3,8}", answer.read())
        assert answer.finish_reason == "stop"
    cut = model.ask("Who?", json_schema={"type": "string", "minLength": 50}, max_new_tokens=4, **thinks)
    assert cut.read().startswith('"')
    assert (cut.finish_reason, cut.openai_finish_reason) == ("length", "length")


def test_a_call_is_made_answered_and_goes_on(model: Model) -> None:
    """The message of a forced call goes into the conversation, and the next prompt holds what the model wrote."""
    thinks: dict[str, Any] = {"enable_thinking": False} if model.prompts.speech.reasoning else {}
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Look"}]
    answer = model.generate(asked, tools=TOOLS, tool_choice="stop", **thinks)
    events = list(answer.events())
    assert [(type(event), event.name) for event in events if isinstance(event, ToolCall)] == [(ToolCall, "stop")]
    assert answer.openai_finish_reason == "tool_calls"
    message = answer.message
    assert message["content"] is None
    call = message["tool_calls"][0]
    assert (call["id"], call["function"]) == (events[0].id, {"name": "stop", "arguments": "{}"})  # type: ignore[union-attr]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "stopped"}
    text = model.prompts.render([*asked, message, result], tools=TOOLS)
    assert answer.text in text
    assert model.generate([*asked, message, result], tools=TOOLS, max_new_tokens=2, **thinks).read() is not None
    with pytest.raises(InputError, match="another form"):
        model.generate(asked, tools=TOOLS, tool_choice="required", regex="a")
    none = model.generate(asked, tools=TOOLS, tool_choice="none", max_new_tokens=1, **thinks)
    none.read()
    free = model.generate(asked, max_new_tokens=1, **thinks)
    free.read()
    assert none.timings.prompt_tokens == free.timings.prompt_tokens


def test_a_budget_of_thoughts(made: Callable[[str], Path], tiny_bundle: Path) -> None:
    found = load(made("nemotron-4b"), threads=1, context=1024, device="cpu")
    free = found.ask("Why?", max_new_tokens=30)
    free.read()
    forced = found.prompts.tokenizer.encode("\n</think>\n\n", add_special_tokens=False).ids
    for budget in (0, 7):
        answer = found.ask("Why?", thinking_budget=budget, max_new_tokens=30)
        events = merged(answer.events())
        head, _, _ = answer.text.partition("\n</think>\n\n")
        assert answer.ids[: budget + len(forced)] == [*free.ids[:budget], *forced]
        assert [type(event) for event in events if isinstance(event, Reasoning)] == [Reasoning][: bool(head.strip())]
        assert "".join(event.text for event in events if isinstance(event, Reasoning)) == head.strip()
    shut = found.ask("Why?", thinking_budget=5, enable_thinking=False, max_new_tokens=9)
    assert "</think>" not in shut.read()
    plain = load(tiny_bundle, threads=1, context=1024, device="cpu")
    with pytest.raises(InputError, match=r"thinking_budget is 3, which has no effect: .* knows no thoughts"):
        plain.ask("Why?", thinking_budget=3)


def test_without_llguidance(tiny_bundle: Path) -> None:
    code = """
from lensmith.runtimes import MissingExtra, load
model = load(sys.argv[1], threads=1, context=256)
print(len(model.ask("a", max_new_tokens=2).read()) >= 0)
try:
    model.ask("a", regex="b")
except MissingExtra as error:
    print(error)
"""
    ran = run_without(("llguidance",), code, str(tiny_bundle))
    needs = "an answer of a given form needs packages that are not installed; run: pip install 'lensmith[constrain]'"
    assert (ran.returncode, ran.stdout) == (0, f"True\n{needs}\n"), ran.stderr
