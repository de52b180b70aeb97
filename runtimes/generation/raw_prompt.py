"""Prompts that no chat template writes: a text, or token ids, that a model goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...targets.errors import InputError
from ..prompt.prompt_builder import PromptBuilder
from ..prompt.prompt_parts import Prompt
from ..values import shown


def raw_prompt(prompts: PromptBuilder, text: str | Sequence[int], vocab: int) -> Prompt:
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
