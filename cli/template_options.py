"""Options of run and chat for the chat template: --think, --variable and --tools; and the calls of tools in answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from ..targets.errors import InputError
from .option_types import options

MOST_BYTES = 1 << 24
TOOL_LIST = 'a JSON list of tools, as OpenAI writes them: [{"type": "function", "function": {"name": ...}}]'
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>]+)>(.*)</function>", re.DOTALL)  # as Qwen3.5 writes calls
_PARAMETER = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def read_variables(_: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE as names and values: JSON where it parses, else text. A callback of click's options."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{text[:60]!r} is not NAME=VALUE", param=option)
        if name in found:
            raise click.BadParameter(f"{name} is given twice", param=option)
        found[name] = _value(value)
    return found


def read_tools(_: click.Context, option: click.Parameter, path: Path | None) -> list[Any] | None:
    """The tools in a file. A callback of click's options."""
    from ..runtimes.storage.reading import read_utf8

    if path is None:
        return None
    try:
        tools: Any = json.loads(read_utf8(path, MOST_BYTES, TOOL_LIST))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); expected {TOOL_LIST}") from None
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) and _name(tool) for tool in tools):
        raise InputError(f"{path} is no list of named tools; expected {TOOL_LIST}")
    return tools


TEMPLATE = options(
    click.option("--think/--no-think", "think", default=None, help="Let the model think first (enable_thinking)."),
    click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", callback=read_variables,
                 help="A variable of the chat template; VALUE is JSON or else text. Repeatable."),
    click.option("--tools", type=click.Path(path_type=Path), metavar="FILE", callback=read_tools,
                 help="Tools that the model may call: a JSON list, as OpenAI writes them."),
)  # fmt: skip


def template_variables(chosen: dict[str, Any]) -> dict[str, Any]:
    """The variables of the chat template, taken out of the options of a command."""
    found: dict[str, Any] = chosen.pop("variables")
    for name, option in (("enable_thinking", "think"), ("tools", "tools")):
        if (value := chosen.pop(option)) is not None:
            if name in found:
                raise InputError(f"--variable {name} and --{option} say the same thing; leave one of them out")
            found[name] = value
    return found


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls in an answer, in its order: name and arguments. What is no call in either form is left out."""
    return [call for inner in _CALL.findall(text) if (call := _json_call(inner) or _xml_call(inner))]


def _json_call(inner: str) -> dict[str, Any] | None:
    try:
        call = json.loads(inner)
    except (ValueError, RecursionError):
        return None
    named = isinstance(call, dict) and isinstance(call.get("name"), str)
    return {"name": call["name"], "arguments": call.get("arguments", {})} if named else None


def _xml_call(inner: str) -> dict[str, Any] | None:
    found = _FUNCTION.search(inner)
    return found and {"name": found[1].strip(), "arguments": dict(_PARAMETER.findall(found[2]))}


def _name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function", tool)
    return isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON
