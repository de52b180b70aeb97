"""Which form a model's calls and thoughts have, found out from its chat template by what it makes of a conversation."""

from __future__ import annotations

import re
from typing import Any

from ...targets.errors import InputError
from ..bundle.input_sections import Speech
from .template import ChatTemplate

NAME, KEY, VALUE = "lensmith_tool", "lensmith_key", "lensmith_value"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]},
    },
}
ARGUMENTS = {"object": {KEY: VALUE}, "text": f'{{"{KEY}": "{VALUE}"}}'}
FORMS = {
    "xml": re.compile(rf"<tool_call>\s*<function={NAME}>\s*<parameter={KEY}>\s*{VALUE}\s*</parameter>"),
    "json": re.compile(rf'<tool_call>\s*{{\s*"name": "{NAME}", "arguments": {{"{KEY}": "{VALUE}"}}'),
}
THINKING = re.compile(r"</?think>")


def find_speech(template: ChatTemplate) -> Speech:
    """How a template writes calls of earlier turns, what it takes as their arguments, and whether there are thoughts.

    A template that refuses conversations with tools, or writes calls in another form, has none that are known.
    """
    reasoning = THINKING.search(template.source) is not None
    if "tools" not in template.words.variables:
        return Speech(reasoning=reasoning)
    written = {kind: _form(template, arguments) for kind, arguments in ARGUMENTS.items()}
    form = written["object"] or written["text"]
    return Speech(tool_calls=form, arguments="text" if written["text"] else "object", reasoning=reasoning)  # type: ignore[arg-type]


def _form(template: ChatTemplate, arguments: Any) -> str | None:
    call = {"id": "call_1", "type": "function", "function": {"name": NAME, "arguments": arguments}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": NAME, "tool_call_id": "call_1", "content": "b"},
    ]
    try:
        text = template.render(messages, tools=[TOOL])
    except InputError:
        return None
    return next((form for form, pattern in FORMS.items() if pattern.search(text)), None)
