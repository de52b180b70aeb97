"""Chat templates: the Jinja of transformers (render_jinja_template), in a sandbox with limits (template_limits.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.utils import Namespace

from ...targets.errors import InputError
from .continuation import cut_at_mark, mark_end
from .template_costs import limited, weighed
from .template_limits import BudgetedSandbox
from .template_words import TemplateWords, template_words

MAX_SOURCE_CHARS = 1 << 17  # those of published models have up to 20,000; compiling more takes seconds
MOST_SOURCE_BYTES = 4 * MAX_SOURCE_CHARS
MAX_OUTPUT_CHARS = 1 << 24
MAX_MESSAGE_CHARS = 300  # of what a template says when it refuses a conversation


class ChatTemplate:
    """A compiled chat template; `render` gives the text that transformers' `apply_chat_template` gives."""

    def __init__(self, source: str, *, max_seconds: float = 5.0) -> None:
        """Compile `source`; raises InputError with the line of a syntax error."""
        self._max_seconds = max_seconds
        if len(source) > MAX_SOURCE_CHARS:
            raise InputError(f"the chat template has {len(source)} characters; at most {MAX_SOURCE_CHARS} are accepted")
        self.source, self._environment = source, _environment()
        with _reported(), limited(max_seconds):
            code = self._environment.compile(self._environment.charged(source))
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    @cached_property
    def words(self) -> TemplateWords:
        """The variables and keys that the template reads."""
        with _reported(), limited(self._max_seconds):
            return template_words(self._environment, self.source)

    def render(self, messages: list[dict[str, Any]], *, continued: str | None = None, **variables: Any) -> str:
        """The text of `messages`; `variables` (tools, add_generation_prompt, ...) are those the template may read.

        With `continued`, a field of the last message ("content"), the text ends where that field does. Raises
        InputError when the template refuses the conversation, breaks a rule of the sandbox or reaches a limit.
        """
        given = {"tools": None, "documents": None, "add_generation_prompt": False, **variables}
        with _reported(), limited(self._max_seconds):
            chat = [_with_reasoning(message) for message in plain_data(messages)]
            said = None if continued is None else mark_end(chat[-1], continued, self.source)
            parts, length = [], 0
            for part in self._template.generate(messages=chat, **plain_data(given)):
                parts.append(part)
                length += len(part)
                if length > MAX_OUTPUT_CHARS:
                    raise SecurityError(f"more than {MAX_OUTPUT_CHARS} characters of output")
        text = "".join(parts)
        return text if said is None else cut_at_mark(text, said)


def plain_data(value: Any) -> Any:
    """A copy of `value` out of plain JSON types; anything else becomes a placeholder of its type, such as '<Image>'."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # a subclass may have methods that the sandbox does not know
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, np.generic):
        return plain_data(value.item())
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_data(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under each name that templates read, as transformers fills them in."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


@contextmanager
def _reported() -> Iterator[None]:
    """Any failure of the template as one InputError: templates can raise what they like."""
    try:
        yield
    except InputError:
        raise
    except SecurityError as error:
        raise InputError(
            f"the chat template was stopped: {_short(error)}; use the template of the published model"
        ) from None
    except TemplateSyntaxError as error:
        raise InputError(
            f"the chat template is not valid Jinja: {_short(error.message)} (line {error.lineno})"
        ) from None
    except TemplateError as error:
        reason = _short(error.message or type(error).__name__)
        raise InputError(f"the chat template refused the conversation: {reason}") from None
    except Exception as error:
        name = type(error).__name__
        raise InputError(f"the chat template failed on this conversation: {name}: {_short(error)}") from None


def _short(told: object) -> str:
    """What a template or an error says, as part of a sentence."""
    words = " ".join(str(told)[:4000].split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:MAX_MESSAGE_CHARS]


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' tojson: no HTML escapes."""
    weighed(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(weighed(form)[:1000])


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)  # `self` looks names up in the namespace only
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace attribute named {name!r}")


class _Generation(Extension):
    """{% generation %} marks what the assistant says; for a prompt it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> BudgetedSandbox:
    """transformers' settings, filters and globals."""
    environment = BudgetedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControls])
    environment.add_filter("tojson", _tojson)
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return environment
