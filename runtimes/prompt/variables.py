"""What callers may give a chat template besides the conversation: the variables that it reads, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...targets.errors import InputError, closest
from ..values import truth
from .template import ChatTemplate

UNSUPPORTED = {"response_format": "give the schema as json_schema, or json_schema=True for any JSON"}

USUAL = ("tools", "documents", "enable_thinking")  # None stands for not given
OF_RENDERING = ("add_generation_prompt", "continue_final_message")  # which PromptBuilder deals with


def checked_variables(given: Mapping[str, Any], template: ChatTemplate, others: Iterable[str] = ()) -> dict[str, Any]:
    """Those that are given. `tools` and `documents` are lists of objects as JSON has them; None stands for none.

    Raises InputError for a name that the template does not read, with the closest of its own and of `others`.
    """
    chosen = {name: value for name, value in given.items() if value is not None or name not in USUAL}
    for name, value in chosen.items():
        if name in OF_RENDERING:
            continue
        if name in UNSUPPORTED:
            raise InputError(f"{name} is not supported: {UNSUPPORTED[name]}")
        if name not in template.words.variables:
            known = template.words.variables
            hint = (
                closest(name, {*known, *others} - {name}) or f"the template reads {', '.join(sorted(known)) or 'none'}"
            )
            raise InputError(f"{name!r} is neither an option nor a variable of this bundle's chat template; {hint}")
        if name in ("tools", "documents"):
            check_objects(name, value)
        elif name == "enable_thinking":
            truth(name, value)
    return chosen


def check_objects(name: str, value: Any) -> None:
    """Raise InputError for what is no list of JSON objects, as tools and documents are."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is a {type(value).__name__}; expected a list of objects")
    for item in value:
        if callable(item):
            named = getattr(item, "__name__", item)
            raise InputError(f"{name} holds the function {named!r}; expected the JSON schema that transformers' "
                             "get_json_schema writes")  # fmt: skip
        if not isinstance(item, Mapping):
            raise InputError(f"{name} holds a {type(item).__name__}; expected objects")
        try:
            json.dumps(item)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name} holds what JSON cannot say ({error}); expected plain objects") from None
