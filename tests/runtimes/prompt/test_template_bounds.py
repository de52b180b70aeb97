"""Chat templates from strangers: nothing they can say takes long, takes much memory, or fills a screen."""

from __future__ import annotations

import resource
import time

import pytest
from lensmith.runtimes.prompt.template import (
    MAX_MESSAGE_CHARS,
    MAX_OUTPUT_CHARS,
    MAX_SOURCE_CHARS,
    ChatTemplate,
)
from lensmith.targets.errors import InputError

CPU_SECONDS = 10  # a budget of 5 on the clock, and what one operation may take behind it
MEMORY_KB = 1_000_000

LONG = "{% set s = 'ab' * 2000000 %}"
DEEP = "{% set ns = namespace(x=[1]) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}"
BOMBS = {
    "round": "{{ 15|round(-10**9) }}",
    "round up": "{{ 15|round(10**9, 'ceil') }}",
    "round a variable": "{% set n = 10**9 %}{{ 1.5|round(n) }}",
    "round an integer": "{{ ('f' * 60000)|int(0, 16)|round(-400) }}",
    "power": "{{ 10**(10**10) }}",
    "powers": "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "division": "{% set n = ('f' * 4000000)|int(0, 16) %}{{ n // (n - 1) }}",
    "remainder": "{% set n = ('f' * 4000000)|int(0, 16) %}{{ n % 7919 }}",
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat a list": "{{ [0] * 10**10 }}",
    "repeat a tuple": "{{ (0,) * 10**10 }}",
    "doubling": "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s]|join %}"
                        "{% endfor %}",
    "doubling by tilde": "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
                         "{% endfor %}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
                      "{% endfor %}",
    "doubling nests": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}"
                      "{% endfor %}",
    "range": "{{ range(10**9)|list }}",
    "ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
              "{% endfor %}{% endfor %}",
    "passes over one range": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}"
                             "{% endfor %}{% endfor %}",
    "skipped passes": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width from a value": "{{ '%*d' % (10**9, 1) }}",
    "width of a field": "{{ '{:>1000000000}'.format(1) }}",
    "width of a width": "{{ '{:>{}}'.format(1, 10**9) }}",
    "width by filter": "{{ '%1000000000d'|format(1) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "center": "{{ 'a'|center(10**10) }}",
    "center method": "{{ 'a'.center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ '\t'.expandtabs(10**10) }}",
    "indent": "{{ ('a\n' * 1000000)|indent(1000000) }}",
    "replace": LONG + "{{ s.replace('a', s) }}",
    "replace filter": LONG + "{{ s|replace('', s) }}",
    "join": LONG + "{{ s.join(s|list) }}",
    "batch": "{{ [1]|batch(10**10, 'a')|list }}",
    "slice": "{{ [1]|slice(10**10)|list }}",
    "encode": "{{ 'a'.encode().center(10**10) }}",
    "bytes": "{{ 'a'.encode() * 10**10 }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "translate": "{{ 'aaa'.translate({97: 'b' * 4000000}) }}",
    "strip": LONG + "{{ s.strip('x' * 2000000 + 'ba') }}",
    "trim": LONG + "{{ s|trim('x' * 2000000 + 'ba') }}",
    "rfind": LONG + "{{ s.rfind('b' + 'ab' * 500000 + 'x') }}",
    "striptags": "{{ ('<' * 1000000)|safe }}{{ ('<' * 1000000)|escape }}{{ (('<' * 100000)|safe).striptags() }}",
    "json": DEEP + "{{ ([ns.x] * 2000)|tojson(indent=64) }}",
    "json separators": LONG + "{{ ([1] * 1000000)|tojson(separators=[s, s]) }}",
    "json of json": "{% set ns = namespace(x='\"') %}{% for i in range(99) %}{% set ns.x = ns.x|tojson %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in width": "{% macro f(n) %}{% for i in range(99) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}"
                          "{{ f(9) }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop(range(9)) }}{% endfor %}",
    "call": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
            + "{% call f() %}" * 30 + "a" + "{% endcall %}" * 30,
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested blocks": "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "chain": "{{ 1" + "+1" * 50_000 + " }}",
    "long source": "{{ a }}" * MAX_SOURCE_CHARS,
    "sum": "{{ [[1]]|sum(start=[]) }}",
    "time": "{{ strftime_now('%999999999d' * 90) }}{{ 10**99999 }}",
    "equal lists": "{% set x = range(99999)|list %}{% for i in range(99999) %}{{ x in [x + []] }}{% endfor %}",
    "sort": LONG + "{{ ([s] * 2000000)|sort }}",
    "keys": "{{ dict(a=1).fromkeys('ab' * 2000000) }}",
}  # fmt: skip


def used() -> tuple[float, int]:
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("case", BOMBS)
def test_bombs(case: str) -> None:
    seconds, memory = used()
    with pytest.raises(InputError) as caught:
        ChatTemplate(BOMBS[case], max_seconds=0.2).render([{"role": "user", "content": "a"}], y=[])
    now = used()
    assert now[0] - seconds < CPU_SECONDS
    assert now[1] - memory < MEMORY_KB
    assert len(str(caught.value)) < MAX_MESSAGE_CHARS + 200
    assert "\n" not in str(caught.value)


MESSAGES = {
    "raised": "{{ raise_exception('no ' * 100000) }}",
    "control": "{{ raise_exception('a\x1b[31mb\x00c\u202ed\n\ne') }}",
    "syntax": "{{ " + "a" * 100_000 + " b }}",
    "attribute": "{{ ''." + "a" * 100_000 + "() }}",
    "unknown filter": "{{ 1|" + "a" * 100_000 + " }}",
    "error": "{{ {}['" + "a" * 100_000 + "'].x }}",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_are_one_short_line(case: str) -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(MESSAGES[case]).render([{"role": "user", "content": "a"}])
    text = str(caught.value)
    assert len(text) < MAX_MESSAGE_CHARS + 200
    assert all(letter.isprintable() for letter in text)


def test_what_templates_do_still_works() -> None:
    source = (
        "{{ 'a,b'.split(',')|join('-') }}|{{ ' a '.strip() }}|{{ 'ab'[::-1] }}|{{ 1.25|round(1) }}|"
        "{{ {'a': [1]}|tojson }}|"
        "{{ {'a': 1}.get('b', 2) }}|{{ '%s %d' % ('x', 3) }}|{{ 'aXb'.replace('X', '') }}|{{ [3, 1]|sort }}|"
        "{{ 'A'.lower() }}|{{ {'a': 1}.items()|list }}|{{ 'abc'.startswith('a') }}|{{ [{'a': {}}]|tojson(indent=4) }}|"
        "{{ '</think>' in 'x</think>y' }}|{{ 'x</t>y'.split('</t>')[-1].lstrip('\n') }}|{{ 7 // 2 }}|{{ 'é'|upper }}"
    )
    expected = (
        'a-b|a|ba|1.2|{"a": [1]}|2|x 3|ab|[1, 3]|a|[(\'a\', 1)]|True|[\n    {\n        "a": {}\n    }\n]|True|y|3|É'
    )
    assert ChatTemplate(source).render([{"role": "user", "content": "a"}]) == expected


def test_the_output_as_a_whole_is_bounded() -> None:
    """Each part is small enough, and so is the work."""
    source = "{% set s = 'ab' * 1000000 %}{% for i in range(N) %}{{ s }}{% endfor %}"
    assert len(ChatTemplate(source.replace("N", "8")).render([])) == 16_000_000
    with pytest.raises(InputError, match=f"more than {MAX_OUTPUT_CHARS} characters of output"):
        ChatTemplate(source.replace("N", "9")).render([])


@pytest.mark.parametrize("source", ["{% set ns = namespace(_x=1) %}", "{% set ns = namespace() %}{% set ns._x = 1 %}"])
def test_namespaces_have_no_private_names(source: str) -> None:
    with pytest.raises(InputError, match="a namespace attribute named '_x'"):
        ChatTemplate(source).render([])


def test_variables_that_are_not_given_are_transformers_own() -> None:
    assert ChatTemplate("{{ tools }} {{ documents }} {{ add_generation_prompt }}").render([]) == "None None False"
