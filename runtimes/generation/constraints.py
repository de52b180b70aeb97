"""Forms that an answer is held to: JSON of a schema, a regular expression, choices, a grammar; llguidance masks tokens.

It works with every engine, since it only changes logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ...targets.errors import InputError, MissingExtra
from ..values import shown
from .sampling import Logits
from .streaming import special_tokens, spelling_of

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps writes
MOST_GRAMMAR = 1 << 20  # characters


def schema_object(value: Any) -> Mapping[str, Any]:
    """A JSON schema as an object. Raises InputError for what is none, and for one that no answer fits."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"json_schema is no JSON text ({error}); expected a schema, as an object") from None
    if not isinstance(value, Mapping | bool):
        raise InputError(f"json_schema is {shown(value)}; expected a schema, as an object")
    if value is False:
        raise InputError("json_schema is False, which no answer fits; give another, or True for any JSON")
    return {} if value is True else value


def _json_schema(value: Any) -> str:
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(dumped("json_schema", schema_object(value)), defaults=SPACING)
    except ValueError as error:  # deeper than it reads
        raise InputError(f"json_schema cannot be obeyed: {_line(error)}; correct or simplify it") from None


def _regex(value: Any) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(_text("regex", value))


def _choices(value: Any) -> str:
    texts = isinstance(value, list | tuple) and value and all(isinstance(text, str) and text for text in value)
    if not texts:
        raise InputError(f"choices is {shown(value)}; expected a list of texts that are not empty")
    return f"start: {' | '.join(map(quoted, value))}"


def _grammar(value: Any) -> str:
    return _text("grammar", value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} is {shown(value)}; expected a text")
    return value


FORMS: Mapping[str, Callable[[Any], str]] = {
    "json_schema": _json_schema, "regex": _regex, "choices": _choices, "grammar": _grammar,
}  # fmt: skip


def quoted(text: str) -> str:
    """A text as a literal of a Lark grammar."""
    return json.dumps(text)


def dumped(name: str, value: Any) -> str:
    """A JSON text; InputError for what JSON cannot say."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} holds what JSON cannot say ({error}); expected plain objects") from None


def check_available() -> None:
    """MissingExtra without llguidance."""
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise MissingExtra("an answer of a given form", "constrain") from error


class Vocabulary:
    """The tokens of a model for llguidance: once for all answers, since large ones take a second."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int], kept: Set[int] = frozenset()) -> None:
        """`size`: how many logits the decoder gives; `ends`: tokens that end an answer; `kept` as of TextStream."""
        from llguidance import LLTokenizer, TokenizerWrapper

        try:
            wrapped = TokenizerWrapper(_SpelledTokens(tokenizer, size, ends, kept))
            self.tokens: LLTokenizer = LLTokenizer(wrapped, n_vocab=size, eos_token=list(ends), slices=[])
        except ValueError as error:
            raise InputError(f"the bundle's tokenizer cannot hold answers to a form: {_line(error)}") from None
        self.size = size

    def form(self, option: str, value: Any) -> Form:
        """The form that an option asks for; InputError where there can be none."""
        return self.form_of(option, FORMS[option](value))

    def form_of(self, option: str, grammar: str) -> Form:
        """The form of a grammar."""
        from llguidance import LLMatcher

        if len(grammar) > MOST_GRAMMAR:
            raise InputError(f"{option} has {len(grammar)} characters; at most {MOST_GRAMMAR} are accepted")
        matcher = LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"{option} cannot be obeyed: {_line(matcher.get_error())}; correct or simplify it")
        return Form(option, matcher, self.size)


class _SpelledTokens:
    """A tokenizer as llguidance takes it, with the tokens as an answer's text spells them.

    Its own reader of tokenizer.json takes all added tokens for special ones, `<tool_call>` and `</think>` too.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int], kept: Set[int]) -> None:
        spelling, names = spelling_of(tokenizer), map(tokenizer.id_to_token, range(size))
        special = special_tokens(tokenizer) - kept
        self.tokens = [b"" if name is None else spelling.spelled(name) for name in names]
        self.special_token_ids = sorted(number for number in special | set(ends) if number < size)
        self.eos_token_id, self._tokenizer = ends[0], tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return list(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids)


class Form:
    """A form and how much of an answer it has seen."""

    def __init__(self, option: str, matcher: LLMatcher, size: int) -> None:
        self._option, self._matcher, self._size = option, matcher, size
        self._allowed()  # an impossible one says so before the prompt is computed

    def allowed(self, logits: Logits) -> Logits:
        """Logits [vocab] of the tokens that may come next, minus infinity for all others."""
        return np.where(self._allowed(), logits, np.float32(-np.inf))

    def push(self, token: int) -> None:
        """Go on with a token that is allowed."""
        if not self._matcher.consume_token(token):
            raise InputError(f"{self._option} cannot be obeyed: {_line(self._matcher.get_error())}; simplify it")

    def takes(self, tokens: Sequence[int]) -> bool:
        """Go on with tokens that are there already, if all of them are allowed."""
        return self._matcher.try_consume_tokens([*tokens]) == len(tokens)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _allowed(self) -> npt.NDArray[np.bool_]:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, bitorder="little")[: self._size].astype(bool)
        if self._matcher.is_error() or not allowed.any():
            reason = _line(self._matcher.get_error()) or "no token of the model can go on in it"
            raise InputError(f"{self._option} cannot be obeyed: {reason}; correct or simplify it")
        return allowed


def _line(error: object) -> str:
    """What llguidance says, as part of a sentence."""
    words = " ".join(str(error).split())
    return words[:200].rstrip(" .;")
