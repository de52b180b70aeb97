"""How a model writes calls and thoughts, found in its chat template; recorded when a bundle is made."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lensmith.runtimes.bundle.input_sections import Speech
from lensmith.runtimes.prompt.prompt_builder import open_prompt
from lensmith.runtimes.prompt.prompt_parts import PromptSpec
from lensmith.runtimes.prompt.speech import find_speech
from lensmith.runtimes.prompt.template import ChatTemplate
from lensmith.targets.errors import InputError

from tests.paths import ROOT, TINY

XML, JSON = {"tool_calls": "xml", "arguments": "object"}, {"tool_calls": "json", "arguments": "text"}
PUBLISHED: dict[str, Speech] = {
    "tarn-2b": Speech(**XML, reasoning=True), "nemotron-4b": Speech(**XML, reasoning=True),  # type: ignore[arg-type]
    "qwen3-vl-2b": Speech(**JSON), "vqwen3-4b": Speech(**JSON, reasoning=True),  # type: ignore[arg-type]
    "qwen2.5-vl-3b": Speech(), "qwen2-vl-2b": Speech(),
}  # fmt: skip
HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
TAIL = "<|im_end|>\n{% endfor %}{{ tools | tojson if tools }}"
CALLS = "{% for c in m.tool_calls or [] %}"
MADE: dict[str, tuple[str, Speech]] = {
    "tojson alone": (HEAD + CALLS + '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
                     "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}" + TAIL,
                     Speech(tool_calls="json", arguments="object")),
    "text alone": (HEAD + CALLS + '<tool_call>{"name": "{{ c.function.name }}", "arguments": '
                   "{{ c.function.arguments + '' }}}</tool_call>{% endfor %}" + TAIL,
                   Speech(tool_calls="json", arguments="text")),
    "the call as a whole": (HEAD + CALLS + "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}" + TAIL,
                            Speech(tool_calls="json", arguments="object")),
    "another form": (HEAD + CALLS + "[{{ c.function.name }}()]{% endfor %}" + TAIL, Speech()),
    "refused": ("{{ raise_exception('no tools') if tools }}</think>", Speech(reasoning=True)),
    "no tools": (HEAD + "{% endfor %}<think>", Speech(reasoning=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name: str) -> None:
    path = ROOT / "exporters" / "synth" / "synth_configs" / name / "chat_template.jinja"
    assert find_speech(ChatTemplate(path.read_text(encoding="utf-8"))) == PUBLISHED[name]


@pytest.mark.parametrize("name", MADE)
def test_other_templates(name: str) -> None:
    template, speech = MADE[name]
    assert find_speech(ChatTemplate(template)) == speech


def test_a_template_without_end_is_no_way_to_wait() -> None:
    with pytest.raises(InputError, match="stopped"):
        ChatTemplate("{% for a in range(99999) %}{% for b in range(99999) %}{{ tools }}{% endfor %}{% endfor %}",
                     max_seconds=0.2).render([])  # fmt: skip
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ tools }}{% endfor %}{% endfor %}"
    assert find_speech(ChatTemplate(endless, max_seconds=0.2)) == Speech()


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava"])
def test_recorded_in_the_prompt_section(family: str) -> None:
    from lensmith.exporters.pipeline import Options, prepare

    folder = TINY / family
    section = prepare(folder, Options()).sections["prompt"]
    found = open_prompt(folder, PromptSpec()).speech  # of a bundle from before
    recorded: dict[str, Any] = {
        "tool_calls": found.tool_calls,
        "arguments": found.arguments,
        "reasoning": found.reasoning,
    }
    assert json.loads(json.dumps(section["speech"])) == recorded
    assert open_prompt(folder, PromptSpec(speech=Speech(tool_calls="xml"))).speech == Speech(tool_calls="xml")
