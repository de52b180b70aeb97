"""The two forms in which models write calls: XML as Qwen3.5 and Nemotron do, and JSON as Hermes, Qwen2.5 and Qwen3 do.

A reader gets the text from the opening tag on, again and again while it grows, and says when a call in it is whole.
It goes on where it stopped, so that long arguments cost no more than their length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from .typed_values import as_json, typed

OPENING, CLOSING = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
FUNCTION_END, PARAMETER_END = "</function>", "</parameter>"
Tools: TypeAlias = Mapping[str, Mapping[str, Any]]  # the schema of the parameters of each tool


@dataclass(frozen=True)
class WholeCall:
    """A call in `text[:end]`."""

    end: int
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class NoCall:
    """What was read, `text[:end]`, can become no call any more."""

    reason: str
    end: int = 0


class CallReader(Protocol):
    """Reads one call."""

    def read(self, text: str, *, final: bool) -> WholeCall | NoCall | None:
        """The call, why there is none, or None where more text is needed; with `final` there is no more."""


def tool_schemas(tools: Sequence[Mapping[str, Any]] | None) -> Tools:
    """The parameters of each tool by its name, of tools in OpenAI's form or bare."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            found[function["name"]] = schema if isinstance(schema, Mapping) else {}
    return found


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """The JSON text of arguments, as chat templates write it."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text if _is_unicode(text) else json.dumps(arguments)


def reader_of(text: str, tools: Tools, *, final: bool) -> CallReader | NoCall | None:
    """A reader for the form that the text takes behind its opening tag; None where that is not known yet."""
    start = len(OPENING) if text.startswith(OPENING) else 0
    rest = text[start:].lstrip()
    if rest.startswith("{"):
        return JsonReader(start)
    if rest.startswith(FUNCTION):
        return XmlReader(start, tools)
    if FUNCTION.startswith(rest) and not final:
        return None
    return NoCall("no call follows the tag")


class JsonReader:
    """`{"name": ..., "arguments": {...}}`."""

    _MARKS = re.compile(r'["{}\[\]<]')
    _IN_STRING = re.compile(r'\\.|"', re.DOTALL)

    def __init__(self, start: int) -> None:
        self._start = self._place = start
        self._depth, self._inside = 0, False  # of brackets, and a string

    def read(self, text: str, *, final: bool) -> WholeCall | NoCall | None:
        """See CallReader."""
        while True:
            found = (self._IN_STRING if self._inside else self._MARKS).search(text, self._place)
            if found is None:
                dangling = self._inside and text.endswith("\\", self._place)  # what it escapes is still to come
                self._place = len(text) - dangling
                return NoCall("it is cut off") if final else None
            self._place, mark = found.end(), found[0]
            if mark == "<":
                return NoCall("its JSON ends too early", found.start())
            if mark == '"':
                self._inside = not self._inside
            elif not self._inside:
                self._depth += 1 if mark in "{[" else -1
                if self._depth == 0:
                    return _json_call(text[self._start : self._place], self._place)


def _json_call(segment: str, end: int) -> WholeCall | NoCall:
    call = as_json(segment)
    if not isinstance(call, dict):
        return NoCall("it is not valid JSON", end)
    call = call["function"] if isinstance(call.get("function"), dict) else call
    name = call.get("name")
    if not isinstance(name, str) or not name.strip() or not _is_unicode(name):
        return NoCall("it names no function", end)
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):  # JSON within JSON
        arguments = as_json(arguments or "{}")
    arguments = {} if arguments is None else arguments
    return (
        WholeCall(end, name, arguments) if isinstance(arguments, dict) else NoCall("its arguments are no object", end)
    )


class XmlReader:
    """`<function=name>`, `<parameter=key>`, a value as it is, `</parameter>`, ..., `</function>`.

    Nothing is escaped in it, so a value ends at `</parameter>` only where something follows that may follow it, and not
    within a whole call that stands in the value. Where `</parameter>` is missing, it ends at the next parameter that
    the tool has, or at the end of the call.
    """

    _HEAD = re.compile(r"\s*<function=([^<>\n]*)>")
    _NEXT = re.compile(r"\s*(?:<parameter=([^<>\n]*)>|(</function>)|(?=</tool_call>))")
    _MARK = re.compile(r"</parameter>|</function>|\n<parameter=([^<>\n]*)>")

    def __init__(self, start: int, tools: Tools, *, nested: bool = True) -> None:
        """`nested`: whether values may hold whole calls."""
        self._start = self._place = self._scan = start
        self._tools, self._nested = tools, nested
        self._name, self._key = "", ""
        self._texts: dict[str, str] = {}
        self._step: Callable[[str, bool], WholeCall | NoCall | bool | None] = self._head

    def read(self, text: str, *, final: bool) -> WholeCall | NoCall | None:
        """See CallReader."""
        result: WholeCall | NoCall | bool | None = True
        while result is True:
            result = self._step(text, final)
        if final and self._nested and isinstance(result, NoCall) and text.count(OPENING, self._start) > 0:
            again = XmlReader(self._start, self._tools, nested=False).read(text, final=True)
            return again if isinstance(again, WholeCall) and _ends_there(text[again.end :]) else result
        return result or None

    def _head(self, text: str, final: bool) -> WholeCall | NoCall | bool | None:
        found = self._HEAD.match(text, self._place)
        if found is None:
            return self._unfinished(text, (FUNCTION,), final, "its function has no name")
        self._name = found[1].strip()
        if not self._name or not _is_unicode(self._name):
            return NoCall("it names no function")
        self._place, self._step = found.end(), self._between
        return True

    def _between(self, text: str, final: bool) -> WholeCall | NoCall | bool | None:
        found = self._NEXT.match(text, self._place)
        if found is None:
            ends = (PARAMETER, FUNCTION_END, CLOSING)
            return self._unfinished(text, ends, final, "there is text outside of its parameters")
        if found[1] is None:
            return WholeCall(found.end(), self._name, self._arguments())
        self._key = found[1].strip()
        self._place = self._scan = found.end()
        self._step = self._value
        return True

    def _value(self, text: str, final: bool) -> WholeCall | NoCall | bool | None:
        for mark in self._MARK.finditer(text, self._scan):
            ends = self._ends(mark, text, final)
            if ends is None:
                self._scan = mark.start()
                return None
            if ends:
                value = text[self._place : mark.start()].removeprefix("\n")
                self._texts[self._key] = value.removesuffix("\n")
                self._place = mark.end() if mark[0] == PARAMETER_END else mark.start()
                self._step = self._between
                return True
        last = text.rfind("<", self._scan)
        self._scan = max(self._scan, last - 1 if last >= 0 else len(text) - 1)
        return NoCall("it is cut off") if final else None

    def _ends(self, mark: re.Match[str], text: str, final: bool) -> bool | None:
        """Whether a mark ends the value; None where more text is needed."""
        if self._nested and text.count(OPENING, self._place, mark.start()) > text.count(
            CLOSING, self._place, mark.start()
        ):
            return False
        if mark[1] is not None:
            known = self._tools.get(self._name, {}).get("properties")
            key = mark[1].strip()
            return isinstance(known, Mapping) and key in known and key not in {*self._texts, self._key}
        follows = (PARAMETER, FUNCTION_END, CLOSING) if mark[0] == PARAMETER_END else (CLOSING,)
        rest = text[mark.end() : mark.end() + 4096].lstrip()
        if rest.startswith(follows):
            return True
        return None if any(follow.startswith(rest) for follow in follows) and not final else rest == ""

    def _unfinished(self, text: str, tags: Sequence[str], final: bool, reason: str) -> NoCall | None:
        """None where the text may become one of the tags."""
        rest = text[self._place :].lstrip()
        may = any(tag.startswith(rest) for tag in tags)
        begun = any(rest.startswith(tag) for tag in tags if tag.endswith("=")) and not re.search(r"[<>\n]", rest[1:])
        if not (may or begun):
            return NoCall(reason)
        return NoCall("it is cut off") if final else None

    def _arguments(self) -> dict[str, Any]:
        schema = self._tools.get(self._name, {})
        known = schema.get("properties")
        known = known if isinstance(known, Mapping) else {}
        return {key: typed(text, known[key], schema) if key in known else text for key, text in self._texts.items()}


def _ends_there(behind: str) -> bool:
    """Whether nothing but a further call is behind a call."""
    rest = behind.lstrip().removeprefix(CLOSING).lstrip()
    return not rest or rest.startswith(OPENING)


def _is_unicode(text: str) -> bool:
    """Whether it has no halves of surrogates, which no UTF-8 can say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
