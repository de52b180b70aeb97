"""What an answer is held to, for the options of a form and for tools: a form from its beginning, or calls in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...targets.errors import InputError
from ..prompt.prompt_builder import PromptBuilder
from .call_watch import CallWatch, open_watch
from .constraints import Form, Vocabulary, check_available, schema_object
from .options import GenerationOptions
from .tool_grammar import answer_or_calls, begun_calls, call_form


def open_forms(
    options: GenerationOptions,
    tools: Sequence[Mapping[str, Any]] | None,
    choice: Any,
    parallel: bool | None,
    prompts: PromptBuilder,
    vocabulary: Callable[[], Vocabulary],
) -> tuple[Form | None, CallWatch | None]:
    """The form of an answer, or what watches for calls in it; neither where the model is free.

    Raises InputError where there can be no such answer.
    """
    calls = call_form(choice, parallel, tools, prompts.speech)
    if calls is None and options.form is None:
        return None, open_watch(choice, tools, prompts.speech, vocabulary, prompts.tokenizer)
    check_available()
    if options.form is None:
        return vocabulary().form_of("tool_choice", calls or ""), None
    name, value = options.form
    if calls is not None:
        raise InputError(f"tool_choice asks for a call and {name} for another form; give one of them")
    if name == "json_schema" and begun_calls(tools, prompts.speech):
        grammar = answer_or_calls(schema_object(value), tools or (), prompts.speech)
        return vocabulary().form_of(name, grammar), None
    return vocabulary().form(name, value), None
