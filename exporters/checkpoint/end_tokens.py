"""The tokens that end an answer, from every place that names one: a published checkpoint rarely names all in one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer

from ...runtimes.prompt.template import ChatTemplate
from ...targets.errors import InputError
from .folder import Checkpoint

GENERATION, CONFIG, TEXT = "generation_config.json", "config.json", "text_config of config.json"
TOKENIZER, TEMPLATE = "tokenizer_config.json", "the chat template"
QUESTION, ANSWER = "zqQuestion", "zqAnswer"  # words that no template writes
KEY = "eos_token_id"
SECONDS = 1.0  # for a conversation of three turns


def end_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer, vocab: int, ordinary: set[int]) -> dict[int, list[str]]:
    """Ids with the places that name them: the template's own end of a turn first, then as transformers stops.

    Those that transformers obeys, of the first configuration that has any, count as they are. Other places add special
    tokens alone, and none that stand in prompts (`ordinary`). InputError where there is none.
    """
    added = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    end = tokenizer.token_to_id(checkpoint.special_tokens.get("eos_token", ""))
    special = (added | {end}) - ordinary
    turn_end, opening = _turn(checkpoint, tokenizer, special)
    named = [(place, number) for place, numbers in _named(checkpoint, vocab) for number in numbers]
    obeyed = named[0][0] if named else None
    named += [] if end is None else [(TOKENIZER, end)]
    found: dict[int, list[str]] = {number: [TEMPLATE] for number in turn_end}
    for place, number in named:
        if place == obeyed or number in special - opening:
            found.setdefault(number, []).append(place)
    if not found:
        raise InputError(f"{checkpoint.path} names no token that ends an answer; add eos_token_id to {GENERATION}")
    return found


def _named(checkpoint: Checkpoint, vocab: int) -> Iterator[tuple[str, list[int]]]:
    text = checkpoint.config.get("text_config")
    yield GENERATION, _ids(GENERATION, checkpoint.generation_config.get(KEY), vocab)
    yield CONFIG, _ids(CONFIG, checkpoint.config.get(KEY), vocab)
    yield TEXT, _ids(TEXT, text.get(KEY) if isinstance(text, dict) else None, vocab)


def _ids(place: str, given: Any, vocab: int) -> list[int]:
    numbers = given if isinstance(given, list) else [] if given is None else [given]
    for number in numbers:
        if type(number) is not int or not 0 <= number < vocab:
            found = str(number)[:100]
            raise InputError(f"{place} has {KEY} {found!r}; expected the ids of tokens, from 0 to {vocab - 1}")
    return list(dict.fromkeys(numbers))


def _turn(checkpoint: Checkpoint, tokenizer: Tokenizer, special: set[int | None]) -> tuple[list[int], set[int]]:
    """The special token that the template writes last behind every answer, if any, and those that open one."""
    texts = _rendered(checkpoint)
    if texts is None:
        return [], set()
    closed, continued, asked, opened = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    opening = set(opened[len(_common(asked, opened)) :])
    behind = _common(closed, continued)
    return [number for number in behind if number in special - opening][-1:], opening


def _common(one: list[int], other: list[int]) -> list[int]:
    """What both begin with."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def _rendered(checkpoint: Checkpoint) -> tuple[str, str, str, str] | None:
    """What stands behind an answer at the end and within a conversation, and a question alone and to be answered.

    None for templates that refuse such conversations, or write nothing of what was said.
    """
    template = ChatTemplate(checkpoint.chat_template or "", max_seconds=SECONDS)
    for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        user, answer = {"role": "user", "content": content(QUESTION)}, {"role": "assistant", "content": content(ANSWER)}
        conversations = ([user, answer], [user, answer, user], [user])
        try:
            texts = [template.render(messages, **checkpoint.special_tokens) for messages in conversations]
            opened = template.render([user], **checkpoint.special_tokens, add_generation_prompt=True)
        except InputError:
            continue
        if all(ANSWER in text for text in texts[:2]):
            return texts[0].rpartition(ANSWER)[2], texts[1].rpartition(ANSWER)[2], texts[2], opened
    return None
