"""Prompts that no chat template writes: a text, or token ids, that a model goes on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ...targets.errors import InputError
from ..engines.contract import Ints, Step
from ..prompt.prompt_builder import PromptBuilder
from ..prompt.prompt_parts import Prompt
from ..prompt.requests import Request
from ..values import shown
from .conversation import Conversation
from .logprobs import TokenLogprob, spelled, token_logprob

PIECE = 64  # tokens whose logits are there at once


def raw_prompt(prompts: PromptBuilder, text: str | Sequence[int] | Ints, vocab: int) -> Prompt:
    """Raises InputError for an empty prompt, ids beyond the vocabulary, and placeholders of images."""
    if isinstance(text, str):
        prompt = prompts.encode(text)
        if not len(prompt):
            raise InputError("the prompt is empty; give a text to go on with")
        return replace(prompt, thinking=False)
    if not isinstance(text, list | tuple | np.ndarray) or not len(text):
        raise InputError(f"the prompt is {shown(text)}; expected a text, or a list of token ids")
    for number in text:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < vocab:
            raise InputError(f"the prompt has the token {shown(number)}; expected ids from 0 to {vocab - 1}")
        if number in (prompts.image_token_id, prompts.video_token_id):
            raise InputError(f"the prompt has the token {number}, which stands for a picture, and there is none; give "
                             "pictures in a conversation")  # fmt: skip
    nothing = np.zeros((0, 3), np.int64)
    return Prompt(np.array(text, np.int64), nothing[:, :2], nothing, np.zeros(0, np.bool_), thinking=False)


def logprobs_of_prompt(
    conversation: Conversation, request: Request, alternatives: int, stopped: Callable[[], bool]
) -> list[TokenLogprob]:
    """How likely the model takes each token of a prompt without images; nan for the first, which nothing precedes.

    Ends early once `stopped` says so.
    """
    conversation.forget()
    ids, tokenizer = request.prompt.ids, conversation.prompts.tokenizer
    found = [TokenLogprob(int(ids[0]), math.nan, spelled(tokenizer, int(ids[0])))]
    for begin in range(0, len(ids) - 1, PIECE):
        if stopped():
            break
        end = min(begin + PIECE, len(ids) - 1)
        step = Step(ids[begin:end], request.positions[:, begin:end], num_logits=end - begin)
        rows = zip(conversation.run(step), ids[begin + 1 : end + 1], strict=True)
        found += [token_logprob(tokenizer, row, int(token), alternatives) for row, token in rows]
    return found
