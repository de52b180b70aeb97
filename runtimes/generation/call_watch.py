"""Holds calls of tools to the tools' schemas from where a model begins one; whatever else it says is free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from ...targets.errors import InputError, MissingExtra
from ..bundle.input_sections import Speech
from .constraints import Form, Vocabulary, check_available
from .tool_grammar import AUTO, begun_calls


class CallWatch:
    """Reads the text of one answer. `form` is that of the call that was begun, until the call is whole."""

    def __init__(self, openings: Sequence[str], make: Callable[[str], Form | None], tokenizer: Tokenizer) -> None:
        """`make` gives the form of a call with one of the openings in front; None where nothing holds it."""
        self.form: Form | None = None
        self._openings, self._make, self._tokenizer, self._text = openings, make, tokenizer, ""

    def push(self, token: int, text: str) -> None:
        """Go on with a token, and with the text that is certain with it."""
        if self.form is not None:
            self.form.push(token)
            if self.form.complete:
                self.form, self._text = None, ""
            return
        self._text += text
        places = [(place, opening) for opening in self._openings if (place := self._text.find(opening)) >= 0]
        if not places:
            self._text = self._text[1 - max(map(len, self._openings)) :]
            return
        place, opening = min(places)
        begun, self._text = self._text[place:], self._text[place + len(opening) :]
        form = self._make(opening)
        if form is not None and form.takes(self._tokenizer.encode(begun, add_special_tokens=False).ids):
            self.form = form


def open_watch(
    choice: Any,
    tools: Sequence[Mapping[str, Any]] | None,
    speech: Speech,
    vocabulary: Callable[[], Vocabulary],
    tokenizer: Tokenizer,
) -> CallWatch | None:
    """A watch where the model may call tools and need not, and its calls have a form that is known.

    Schemas of tools that are `strict` are obeyed or refused, with InputError; those of others where they can be.
    """
    grammars = begun_calls(tools, speech) if choice in (None, AUTO) else {}
    if not grammars:
        return None
    functions = [tool.get("function", tool) for tool in tools or ()]
    strict = any(isinstance(function, Mapping) and function.get("strict") is True for function in functions)
    try:
        check_available()
    except MissingExtra:
        if strict:
            raise
        return None

    def make(opening: str) -> Form | None:
        try:
            return vocabulary().form_of("the schema of the tools", grammars[opening])
        except InputError:
            if strict:
                raise
            return None

    if strict:
        for opening in grammars:
            make(opening)
    return CallWatch([*grammars], make, tokenizer)
