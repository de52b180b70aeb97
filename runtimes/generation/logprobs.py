"""How likely the model took the tokens that were chosen, and those that it took to be the likeliest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..engines.contract import Floats
from .streaming import byte_alphabet

MOST_ALTERNATIVES = 20
_BYTES = byte_alphabet()


@dataclass(frozen=True)
class TokenLogprob:
    """A token with the logarithm of its probability, before temperature, filters and penalties."""

    id: int
    logprob: float
    spelled: bytes  # which may be a part of a character
    top: tuple[TokenLogprob, ...] = ()  # the likeliest tokens in its place, the likeliest first

    def as_openai(self) -> dict[str, Any]:
        """An entry of `logprobs.content`."""
        top = {"top_logprobs": [token._alone() for token in self.top]}
        return {**self._alone(), **top}

    def _alone(self) -> dict[str, Any]:
        text = self.spelled.decode("utf-8", "replace")
        return {"token": text, "logprob": self.logprob, "bytes": [*self.spelled]}


def token_logprob(tokenizer: Tokenizer, logits: Floats, chosen: int, alternatives: int) -> TokenLogprob:
    """Of the token `chosen` from logits [vocab], with so many alternatives."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    likeliest = np.argpartition(-values, alternatives)[:alternatives] if alternatives else np.zeros(0, np.int64)
    ranked = likeliest[np.argsort(-values[likeliest], kind="stable")]

    def alone(token: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token, float(values[token]), spelled(tokenizer, token), top)

    return alone(chosen, tuple(alone(int(token)) for token in ranked))


def spelled(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for; none beyond the vocabulary."""
    name = tokenizer.id_to_token(token)
    if name is None:
        return b""
    if token not in tokenizer.get_added_tokens_decoder() and all(char in _BYTES for char in name):
        return bytes(_BYTES[char] for char in name)
    return str(name).replace("▁", " ").encode()
