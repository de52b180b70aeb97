"""Conversations, template variables and continued answers: the ids of transformers, or one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.bundle.checked_manifest import inputs_of
from lensmith.runtimes.prompt.manifest_specs import prompt_spec
from lensmith.runtimes.prompt.messages import as_messages, find_images, find_media
from lensmith.runtimes.prompt.prompt_builder import PromptBuilder
from lensmith.runtimes.prompt.template import ChatTemplate
from lensmith.runtimes.prompt.tokenizer_check import open_tokenizer
from lensmith.runtimes.prompt.variables import checked_variables
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import hf
from tests.paths import ROOT, TINY

MODELS = {name: TINY / name for name in ("qwen3_vl", "qwen3_5", "llava")}
TEMPLATES = {
    **{name: (folder, folder / "chat_template.jinja") for name, folder in MODELS.items()},
    "nemotron-4b": (MODELS["qwen3_5"], ROOT / "exporters/synth/synth_configs/nemotron-4b/chat_template.jinja"),
}
READ = {
    "qwen3_vl": {"add_generation_prompt", "add_vision_id", "tools"},
    "qwen3_5": {"add_generation_prompt", "add_vision_id", "enable_thinking", "tools"},
    "llava": {"add_generation_prompt", "enable_thinking", "tools"},
    "nemotron-4b": {"add_generation_prompt", "add_vision_id", "enable_thinking", "tools"},
}
TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object", "properties": {"x": {}}}}}


@cache
def builder(name: str) -> PromptBuilder:
    folder, template = TEMPLATES[name]
    job = prepare(folder, Options())
    spec = prompt_spec(inputs_of(job.sections))
    return PromptBuilder(open_tokenizer(folder / "tokenizer.json"), template.read_text(encoding="utf-8"), spec)


@cache
def processor(name: str) -> Any:
    return hf.import_transformers().AutoProcessor.from_pretrained(TEMPLATES[name][0])


TEXT = st.text(st.sampled_from("ab <>/\n\t!ä漢🙂"), min_size=1, max_size=12) | st.sampled_from(
    [
        "Hello",
        " two words ",
        "</think>",
        "<think>\nhm\n</think>\n\nyes",
        "<|im_end|>",
        "CONTINUE",
        "<tool_response>",
        "{{ x }}",
    ]
)
CONTENT = TEXT | st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
CALLS = st.lists(
    st.builds(lambda x, bare: {"name": "zoom", "arguments": {"x": x}} if bare else
              {"type": "function", "function": {"name": "zoom", "arguments": {"x": x, "y": [x]}}}, TEXT, st.booleans()),
    min_size=1, max_size=2,
)  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn, *, reasoning: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(CONTENT)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(CONTENT)})
        if draw(st.integers(0, 2)) == 0:
            calls = draw(CALLS)
            messages.append({"role": "assistant", "content": draw(CONTENT | st.just("")), "tool_calls": calls})
            messages += [{"role": "tool", "content": draw(CONTENT), **draw(st.sampled_from([{}, {"name": "zoom"}]))}
                         for _ in calls]  # fmt: skip
        answer: dict[str, Any] = {"role": "assistant", "content": draw(CONTENT)}
        if reasoning and draw(st.booleans()):
            names = st.sampled_from(["reasoning_content", "reasoning", "thinking"])
            answer |= draw(st.dictionaries(names, TEXT, min_size=1, max_size=2))
        messages.append(answer)
    return messages if draw(st.booleans()) else messages[:-1]


def settings_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "add_vision_id": st.booleans(), "enable_thinking": st.booleans(),
        "tools": st.sampled_from([None, [], [TOOL], [TOOL, {"name": "other", "n": 1}]]),
        "add_generation_prompt": st.booleans(),
    }  # fmt: skip
    read = {key: kind for key, kind in kinds.items() if key in READ[name]}
    extra: dict[str, st.SearchStrategy[Any]] = {
        "continue_final_message": st.sampled_from([True, False, "content", "reasoning_content", "thinking"])
    }
    return st.fixed_dictionaries({}, optional={**read, **extra})


def hf_ids(name: str, messages: Any, variables: Mapping[str, Any]) -> list[int] | None:
    template = TEMPLATES[name][1].read_text(encoding="utf-8")
    try:
        made = processor(name).apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True,
                                                   **variables)  # fmt: skip
    except Exception:  # of the template or of transformers: we refuse too
        return None
    ids: list[int] = made["input_ids"][0]
    return ids


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_ids_equal_hf(name: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(reasoning=name != "qwen3_vl"))
    variables = data.draw(settings_of(name))
    usual = {"add_generation_prompt": not variables.get("continue_final_message"), **variables}
    expected = hf_ids(name, messages, usual)
    if expected is None:
        with pytest.raises(InputError):
            builder(name).build(messages, **variables)
        return
    assert builder(name).build(messages, **variables).ids.tolist() == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_continued_answers_end_where_they_stood(name: str) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one two"}]
    text = builder(name).render(messages, continue_final_message=True)
    assert text.endswith("one two")
    assert text == processor(name).apply_chat_template(
        messages, chat_template=TEMPLATES[name][1].read_text(encoding="utf-8"), continue_final_message=True
    )
    assert builder(name).render(messages, continue_final_message=True, add_generation_prompt=False) == text
    with pytest.raises(InputError, match="leave one of them out"):
        builder(name).render(messages, continue_final_message=True, add_generation_prompt=True)
    for bad in ({"continue_final_message": 1}, {"add_generation_prompt": "yes"}, {"continue_final_message": "nothing"}):
        with pytest.raises(InputError, match=r"expected true or false|has no 'nothing'"):
            builder(name).render(messages, **bad)
    picture = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (9, 9))}]}]
    with pytest.raises(InputError, match="no text that the answer could continue"):
        builder(name).render(picture, continue_final_message=True)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("CONTINUE_FINAL_MESSAGE_TAG a", "one two"),  # the mark of where the answer stops, said by a user
        ("a", "one two \n "),
        ("a", " \n one two"),
        ("a", ""),
        ("a", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]),
    ],
)
def test_continued_answers_are_those_of_transformers(name: str, asked: str, said: Any) -> None:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    assert builder(name).render(messages, continue_final_message=True) == processor(name).apply_chat_template(
        messages, chat_template=TEMPLATES[name][1].read_text(encoding="utf-8"), continue_final_message=True
    )


def test_thoughts_are_continued_in_templates_that_read_one_of_their_names() -> None:
    source = "{{ messages[0].content }}: {{ messages[-1].reasoning_content }}|{{ messages[-1].content }}"
    made = PromptBuilder(builder("qwen3_vl").tokenizer, source, builder("qwen3_vl").spec)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "reasoning": "let me"}]
    assert made.render(messages, continue_final_message="reasoning_content") == "a: let me"


@pytest.mark.parametrize("source", ["{{ messages[-1].content[:7] }}", "{{ messages[-1].content | replace('_', '-') }}",
                                    "{{ messages[-1].content | upper }}", "{{ messages[0].content }}"])  # fmt: skip
def test_answers_that_a_template_changes_cannot_be_continued(source: str) -> None:
    made = PromptBuilder(builder("qwen3_vl").tokenizer, source, builder("qwen3_vl").spec)
    messages = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "one two"}]
    with pytest.raises(InputError, match="the chat template drops or changes it"):
        made.render(messages, continue_final_message=True)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "enable_thinking" in READ[name]])
@pytest.mark.parametrize("given", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("asked", ["reasoning_content", "thinking"])
def test_continued_thoughts_are_those_of_transformers(name: str, given: str, asked: str) -> None:
    """Under whichever of their names they are given, and asked to go on."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", given: "let me see"}]
    expected = hf_ids(name, messages, {"continue_final_message": asked})
    if expected is None:
        with pytest.raises(InputError):
            builder(name).build(messages, continue_final_message=asked)
    else:
        assert builder(name).build(messages, continue_final_message=asked).ids.tolist() == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_variables_are_those_that_the_template_reads(name: str) -> None:
    assert builder(name).template.words.variables == READ[name]
    for bad, words in [
        ("image", "'images'"), ("max_tokens", "'max_new_tokens'"), ("messages", "neither"), ("content", "neither"),
        ("response_format", "not supported"), ("documents", "neither"), ("tool", "'tools'"), ("range", "neither"),
        ("add_visionid", "'add_vision_id'" if "add_vision_id" in READ[name] else "neither"), ("loop", "neither"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            checked_variables({bad: 1}, builder(name).template, ("images", "max_new_tokens", "temperature"))
    if "enable_thinking" not in READ[name]:
        with pytest.raises(InputError, match="neither an option nor a variable"):
            builder(name).render("Hi", enable_thinking=False)


WORDS = {
    "{% if a %}{% set c=1 %}{% elif b %}{% set c=2 %}{% else %}{% set c=3 %}{% endif %}{{ c }}": "ab",
    "{% if a %}{% set c=1 %}{% elif b %}{% set c=2 %}{% endif %}{{ c }}": "abc",
    "{% set x = x or 5 %}{{ x }}": "x",
    "{% if d is not defined %}{% set d = 1 %}{% endif %}{{ d }}": "d",
    "{% set d = d if d is defined else 2 %}{{ d }}": "d",
    "{% if d is defined and d is false %}{% endif %}": "d",
    "{% macro m(p, q=z) %}{{ p ~ q ~ r }}{{ caller() }}{% endmacro %}{% call(u) m(1) %}{{ u ~ v }}{% endcall %}": "zrv",
    "{% for m in messages if w %}{{ loop.index }}{% set k = 1 %}{{ k }}{% else %}{{ e }}{% endfor %}{{ k }}": "wek",
    "{% for k, v in g.items() %}{{ k ~ v }}{% endfor %}": "g",
    "{% with a = b %}{{ a }}{% endwith %}{{ y|default(1) }}{{ namespace(v=c).v }}{{ strftime_now('%d') }}": "byc",
    "{% set ns = namespace(a=1) %}{% set ns.a = q %}{{ ns.a }}{{ range(3) }}": "q",
    "{% generation %}{{ g }}{% endgeneration %}{% filter upper %}{{ f }}{% endfilter %}": "gf",
    "{% set b %}{{ i }}{% endset %}{{ b }}{% set (s, t) = o %}{{ s ~ t }}": "io",
    "{{ h[n] if j else {l: [o]} }}{{ messages[0].role }}": "hnjlo",
    "{% raw %}{{ a }}{% endraw %}{# {{ b }} #}": "",
}


@pytest.mark.parametrize("source", WORDS)
def test_words_of_templates(source: str) -> None:
    assert ChatTemplate(source).words.variables == set(WORDS[source])


def test_keys_that_templates_look_up() -> None:
    source = (
        "{{ m.a }}{{ m['b'] }}{{ m.get('c') }}{{ 1 if 'd' in m }}{{ 1 if 'e' not in m }}{{ 1 if not 'f' in m }}"
        "{{ m[g] }}{{ 1 if 'h' == m }}{{ 'i' }}{% for x in m.j if x.k %}{{ x['l'] }}{% endfor %}"
    )
    assert ChatTemplate(source).words.keys == {*"abcdefjkl", "get"}


SHAPES: list[tuple[Any, str]] = [
    ("", "empty"), (b"Hi", "not a list"), ({"role": "user", "content": "a"}, "not a list"), ([], "empty"),
    (3, "not a list"), (["Hi"], "a message is a str"), ([[{"role": "user", "content": "a"}]], "a message is a list"),
    ([{"content": "a"}], "role None"), ([{"role": 3, "content": "a"}], "role 3"), ([{"role": "user"}], "no content"),
    ([{"role": "user", "content": 3}], "type int"), ([{"role": "user", "content": {"type": "text"}}], "type dict"),
    ([{"role": "assistant"}], "no content"), ([{"role": "user", "content": ["a"]}], "part of a message is a str"),
]  # fmt: skip


@pytest.mark.parametrize(("conversation", "words"), SHAPES)
def test_what_is_no_conversation(conversation: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_messages(conversation)


PARTS: list[tuple[Any, str]] = [
    ({"type": "audio", "audio": "a"}, "known: image"), ({"type": "imagee", "image": "a"}, "'image'"),
    ({"x": 1}, "type None"), ({"type": "text"}, "text None"), ({"type": "text", "text": 3}, "text 3"),
    ({"type": "text", "text": "a", "image": "b"}, "image"), ({"type": "text", "text": "a", "name": "b"}, "key 'name'"),
    ({"type": "text", "text": "a", "cache_control": {}}, "key 'cache_control'"),
    ({"type": "image", "image": "a", "max_pixel": 3}, "'max_pixels'"),
    ({"type": "image", "image": "a", "fps": 3}, "key 'fps'"),
    ({"type": "image", "image": "a", "text": "b"}, "key 'text'"),
    ({"type": "image_url", "image_url": {"url": "a", "detail": "high"}}, "'detail'"),
    ({"type": "video", "video": "a", "n_frames": 4}, "'nframes'|'num_frames'"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize(("part", "words"), PARTS)
def test_parts_hold_nothing_that_vanishes(name: str, part: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        builder(name).build([{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}])
    assert "\n" not in str(caught.value)


USER = {"role": "user", "content": "a"}
MESSAGES: list[tuple[str, Any, str]] = [
    ("qwen3_vl", [{**USER, "image": "b.png"}], "key 'image'"),
    ("qwen3_vl", [{**USER, "name": "Bo"}], "key 'name'"),
    ("qwen3_5", [{**USER, "tool_call": []}, {**USER, "value": 1}], "key 'value'"),
    ("qwen3_5", [{**USER, "weight": 0.5}], "key 'weight'"),
    ("qwen3_vl", [USER, {"role": "assistant", "content": "b", "reasoning_content": "c"}, USER], "reasoning_content"),
    ("qwen3_vl", [USER, {"role": "assistant", "content": "b", "tool_cals": [TOOL]}, USER], "'tool_calls'"),
    ("qwen3_vl", [{"role": "developer", "content": "Be brief."}, USER], "message 0 of the role 'developer'"),
    ("qwen3_vl", [USER, {"role": "system", "content": "Be brief."}, USER], "message 1 of the role 'system'"),
    ("llava", [{"role": "human", "content": "Be brief."}, USER], "message 0 of the role 'human'"),
    ("qwen3_5", [{"role": "developer", "content": "Be brief."}, USER], "Unexpected message role"),
]


@pytest.mark.parametrize(("name", "messages", "words"), MESSAGES)
def test_messages_hold_nothing_that_vanishes(name: str, messages: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        builder(name).build(messages)
    assert "\n" not in str(caught.value)


def test_keys_that_change_the_prompt_are_fine() -> None:
    template = "{% for m in messages %}{{ m.role ~ m.name ~ m.content[0].caption ~ m.content }}{% endfor %}"
    made = PromptBuilder(builder("qwen3_vl").tokenizer, template, builder("qwen3_vl").spec)
    text = made.render([{"role": "x", "name": "Bo", "content": [{"type": "text", "text": "a", "caption": "cap"}]}])
    assert text.startswith("xBocap")
    made.render([{**USER, "reasoning_content": "", "tool_calls": [], "name": None}])
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "zoom", "arguments": {}}]}
    result = {"role": "tool", "tool_call_id": "7", "name": "zoom", "content": "b"}
    builder("qwen3_vl").render([USER, calls, result])


def test_a_text_is_one_question() -> None:
    for name in TEMPLATES:
        assert (
            builder(name).build("What?").ids.tolist()
            == builder(name).build([{**USER, "content": "What?"}]).ids.tolist()
        )


def test_media_in_the_forms_of_others() -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}, "max_pixels": 9},
        {"type": "image", "image_url": "b.png"}, {"image": "c.png"}, {"type": "text", "text": "x", "extra": None},
        {"type": "video_url", "video_url": {"url": "d.mp4"}, "fps": 1}, {"video": "e.mp4"}, {"text": "y"},
    ]  # fmt: skip
    messages = [{"role": "user", "content": tuple(content)}]
    assert find_images(messages) == ["a.png", "b.png", "c.png"]
    assert [source for source, _ in find_media(messages, "video")] == ["d.mp4", "e.mp4"]
    assert find_media(messages, "image")[0][1]["max_pixels"] == 9
    assert builder("qwen3_vl").render(messages).count("<|image_pad|>") == 3


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "base64": "QUJD"}, "data:image/;base64,QUJD"),
        ({"type": "image", "base64": "data:image/png;base64,QUJD"}, "data:image/png;base64,QUJD"),
        ({"type": "image", "path": "data"}, "data"),
        ({"type": "image", "url": "https://x/a.png"}, "https://x/a.png"),
        ({"type": "image", "base64": b"QUJD"}, b"QUJD"),
    ],
)
def test_sources_of_images_as_transformers_names_them(part: dict[str, Any], source: Any) -> None:
    assert find_images([{"role": "user", "content": [part]}]) == [source]
    with pytest.raises(InputError, match="a part of type image has 2 sources"):
        find_images([{"role": "user", "content": [{**part, "image": "b.png"}]}])
    with pytest.raises(InputError, match="a part of type image has 0 sources"):
        find_images([{"role": "user", "content": [{"type": "image"}]}])


TOOLS: list[tuple[Any, str]] = [
    ({"name": "zoom"}, "tools is a dict"), ("zoom", "tools is a str"), ([print], "function 'print'.*get_json_schema"),
    (["zoom"], "holds a str"), ([{"name": object()}], "JSON cannot say"), ([{"n": float("nan"), "s": {1, 2}}], "JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "words"), TOOLS)
def test_unusable_tools(tools: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        builder("qwen3_vl").render("Hi", tools=tools)
