"""Options of run and chat for the chat template: --think, --variable and --tools; and the calls of tools in answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..targets.errors import InputError
from .option_types import options

if TYPE_CHECKING:
    from ..runtimes.generation.answer import Answer

MOST_BYTES = 1 << 24
TOOL_LIST = 'a JSON list of tools, as OpenAI writes them: [{"type": "function", "function": {"name": ...}}]'


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


def calls_of(answer: Answer) -> list[dict[str, Any]]:
    """The calls of an answer that was made with tools, in the same form."""
    functions = [call["function"] for call in answer.message.get("tool_calls", ())]
    return [{"name": each["name"], "arguments": json.loads(each["arguments"])} for each in functions]


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
