"""A grammar of calls: what the model says is calls of its tools, in the form of its chat template, right by schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...targets.errors import InputError, closest
from ..bundle.input_sections import Speech
from ..dialogue.call_forms import FUNCTION, OPENING, Tools, tool_schemas
from ..dialogue.typed_values import as_strings, kinds_of
from ..values import shown, truth

AUTO, NONE, REQUIRED = "auto", "none", "required"
WRAPPED = 'call: "<tool_call>\\n" {} "\\n</tool_call>"'
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def chosen_tools(choice: Any, tools: Sequence[Mapping[str, Any]] | None, speech: Speech) -> Tools | None:
    """The tools of which one must be called, for a `tool_choice` as OpenAI's interface has it; None for "auto".

    Raises InputError for other choices, for tools that are not there, and for models whose calls have no known form.
    """
    if choice in (None, AUTO, NONE):
        return None
    known = tool_schemas(tools)
    function = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else choice
    if not isinstance(name, str):
        raise InputError(f"tool_choice is {shown(choice)}; expected {AUTO!r}, {NONE!r}, {REQUIRED!r} or a tool's name")
    if not known:
        raise InputError(f"tool_choice is {shown(choice)}, and no tools are given; give tools too, or leave it out")
    if speech.tool_calls is None:
        raise InputError("tool_choice asks for a call, and the chat template of this bundle has no form of calls that "
                         "is known; leave it out")  # fmt: skip
    if name != REQUIRED and name not in known:
        raise InputError(f"tool_choice names {name!r}, which is none of the tools; {closest(name, known)}")
    return known if name == REQUIRED else {name: known[name]}


def call_form(
    choice: Any, parallel: bool | None, tools: Sequence[Mapping[str, Any]] | None, speech: Speech
) -> str | None:
    """The grammar of the calls that a `tool_choice` asks for, or None where the model is free.

    Of a named tool there is one call; of any, several unless `parallel` is False.
    """
    wanted = chosen_tools(choice, tools, speech)
    several = parallel is None or truth("parallel_tool_calls", parallel)
    if wanted is None:
        if not several and tools:
            raise InputError("parallel_tool_calls False has no effect unless tool_choice asks for a call; leave it out")
        return None
    return call_grammar(wanted, speech, parallel=several and choice == REQUIRED)


def begun_calls(tools: Sequence[Mapping[str, Any]] | None, speech: Speech) -> Mapping[str, str]:
    """Grammars of one call of the tools, by the texts with which a call begins; none without a form that is known."""
    known = tool_schemas(tools)
    if not known or speech.tool_calls is None:
        return {}
    one = {OPENING: call_grammar(known, speech, parallel=False)}
    return {**one, FUNCTION: _grammar("start: call", "call: {}", known, speech)} if speech.tool_calls == "xml" else one


def answer_or_calls(schema: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], speech: Speech) -> str:
    """A grammar of either JSON of a schema or calls of the tools."""
    start = f'start: answer | call ("\\n" call)*\nanswer: {_json(schema)}'
    return _grammar(start, WRAPPED, tool_schemas(tools), speech)


def call_grammar(tools: Tools, speech: Speech, *, parallel: bool) -> str:
    """A Lark grammar of one call of the tools, or of one or more where `parallel`."""
    return _grammar('start: call ("\\n" call)*' if parallel else "start: call", WRAPPED, tools, speech)


def _grammar(start: str, call: str, tools: Tools, speech: Speech) -> str:
    """Rules of calls, behind those that use them; `call` has a place for the names of the tools' own rules."""
    write = _xml_rules if speech.tool_calls == "xml" else _json_rules
    rules = [start, call.format(f"({' | '.join(f'f{index}' for index in range(len(tools)))})")]
    for index, (name, schema) in enumerate(tools.items()):
        rules += write(f"f{index}", name, schema)
    return "\n".join(rules) + "\n"


def _json_rules(rule: str, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """The name in front, as most templates write it, or the arguments, as Hermes' first models learnt it."""
    named = f'"name": {json.dumps(name, ensure_ascii=False)}'
    first, arguments, last = map(_literal, (f'{{{named}, "arguments": ', '{"arguments": ', f", {named}}}"))
    yield f'{rule}: {first} {rule}a "}}" | {arguments} {rule}a {last}'
    yield f"{rule}a: {_json({'type': 'object', 'additionalProperties': False, **schema})}"


def _xml_rules(rule: str, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    parts = []
    for index, (key, value) in enumerate(properties.items()):
        part = f"{rule}p{index}"
        parts.append(part if key in required else f"{part}?")
        yield from _parameter(part, str(key), value, schema)
    yield f'{rule}: {_literal(f"<function={name}>" + chr(10))} {" ".join(parts)} "</function>"'


def _parameter(rule: str, key: str, schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """A value as the template shows it: texts as they are, everything else as JSON."""
    head, end = _literal(f"<parameter={key}>\n"), _literal("\n</parameter>\n")
    choices = as_strings(schema, root)
    if choices:
        yield f"{rule}: {head} ({' | '.join(map(_literal, choices))}) {end}"
    elif "string" in (kinds := kinds_of(schema, root)) or not kinds:
        yield f"{rule}: {head} {rule}t"
        yield f"{rule}t[suffix={end}]: /(?s:.*)/"
    else:
        shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
        yield f"{rule}: {head} {rule}j {end}"
        yield f"{rule}j: {_json({**shared, **schema})}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': SPACING})}"
