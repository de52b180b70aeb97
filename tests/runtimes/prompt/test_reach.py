"""Whether words and keys reach a prompt, with templates of a line each."""

from __future__ import annotations

from typing import Any

import pytest
from lensmith.runtimes.prompt.reach import check_reaches
from lensmith.runtimes.prompt.template import ChatTemplate
from lensmith.targets.errors import InputError

EACH = "{% for m in messages %}"
WHOLE = EACH + "[{{ m.role }}] {{ m.content }}{% endfor %}"
UPPER = (
    EACH + "{% set c = m.content %}{{ (c if c is string else c | map(attribute='text') | join) | upper }}{% endfor %}"
)
NO_ANSWERS = EACH + "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
FIRST = "{{ messages[0].content }}"
STRICT = EACH + "{% if not m.name %}{{ raise_exception('who?') }}{% endif %}{{ m.content }}{% endfor %}"
CALLS = EACH + "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.name }}{% endfor %}{% endfor %}"
THOUGHTS = EACH + "{% if loop.last and m.thinking %}{{ m.thinking }}{% endif %}{{ m.content }}{% endfor %}"
PARTS = EACH + "{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def user(content: Any = "Hello there", **keys: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **keys}


def answer(content: Any = "Good day", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def part(text: str, **keys: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **keys}


def check(source: str, *chat: dict[str, Any]) -> None:
    template = ChatTemplate(source)
    check_reaches([*chat], template.render([*chat]), template.render, lambda: template.words.keys)


@pytest.mark.parametrize(
    ("source", "chat"),
    [
        (WHOLE, [user(), answer(), user("Hello there")]),
        (WHOLE, [user("b"), user("a"), user("b")]),  # words that are found in front of others
        (UPPER, [user()]),  # other words than were said, but from them
        (UPPER, [user([part("one"), part("two")])]),
        (NO_ANSWERS, [user(), answer("what the model said may be left out"), user("And?")]),
        (STRICT, [user(name="Ann")]),  # without it the template refuses
        (WHOLE, [user(), {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"}]),  # goes by the order
        (CALLS, [user(), answer(tool_calls=[{"name": "f"}]), user("b")]),
        (THOUGHTS, [user(), answer(reasoning="earlier ones are shortened"), user("b")]),
        (THOUGHTS, [user(), answer(reasoning_content="hm"), user("b")]),
        (WHOLE, [user(name="", tool_calls=[])]),  # they say nothing
        (PARTS, [user([part("one"), part("  ")])]),
    ],
)
def test_what_reaches_the_prompt(source: str, chat: list[dict[str, Any]]) -> None:
    check(source, *chat)


@pytest.mark.parametrize(
    ("source", "chat", "words"),
    [
        (FIRST, [user(), user("Unheard")], "message 1 of the role 'user' does not reach"),
        (FIRST, [user(), {"role": "tool", "content": "7"}], "message 1 of the role 'tool'"),
        (PARTS, [user([part("one")]), user([part("two", cache_control=3)])], "type text has the key 'cache_control'"),
        (NO_ANSWERS.replace("assistant", "system"), [{"role": "system", "content": "Be kind"}, user()], "message 0"),
        (WHOLE, [user(name="Ann")], "role 'user' has the key 'name'"),
        (WHOLE, [user(tool_call_id="1")], "role 'user' has the key 'tool_call_id'"),
        (WHOLE, [user(weight=0)], "key 'weight'"),
        (WHOLE, [user(), answer(tool_calls=[{"name": "f"}]), user("b")], "key 'tool_calls', .*; leave it out"),
        (WHOLE, [user(), answer(thinking="hm"), user("b")], "key 'thinking'"),
        (WHOLE, [user(contents="x")], "did you mean 'content'"),
    ],
)
def test_what_does_not_reach_the_prompt(source: str, chat: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check(source, *chat)
