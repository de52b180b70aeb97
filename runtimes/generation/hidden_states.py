"""What a decoder makes of a conversation in front of its output head: vectors for search, ranking and classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.contract import Decoder, Floats, Ints, Step
from ..prompt.prompt_builder import PromptBuilder
from ..prompt.requests import Request
from ..storage.array_files import write_arrays
from ..storage.new_file import new_file
from .prefill import chunks


@dataclass(frozen=True)
class HiddenStates:
    """The last hidden states of a conversation, behind the last norm, as transformers' `hidden_states[-1]`."""

    ids: Ints  # [seq], those of images and videos among them
    states: Floats  # [seq, hidden]

    def pooled(self, *, normalize: bool = False) -> Floats:
        """The state of the last token [hidden], of length 1 with `normalize`: what models for embedding compare."""
        last: Floats = self.states[-1].copy()
        if normalize and (length := np.linalg.norm(last)) > 0:
            last /= length
        return last


def run_for_hidden_states(decoder: Decoder, prompts: PromptBuilder, request: Request, chunk: int) -> HiddenStates:
    """Run a prompt in states of its own, which no other conversation sees."""
    ids, states = request.prompt.ids, decoder.open_states()
    fed, made = prompts.for_decoder(ids), np.empty((len(ids), decoder.hidden), np.float32)
    for begin, end in chunks(0, len(ids), chunk, 0):
        inside = slice(begin, end)
        images = request.features_between(begin, end)
        step = Step(fed[inside], request.positions[:, inside], images, num_logits=0, num_hidden_states=end - begin)
        decoder.run(states, step)
        made[inside] = states.hidden_states
    return HiddenStates(ids, made)


def save_hidden_states(path: str | Path, found: HiddenStates, *, normalize: bool = False) -> None:
    """Write .npz with ids [seq], hidden_states [seq, hidden] and pooled [hidden]. A file that is there is replaced."""
    arrays: dict[str, NDArray[Any]] = {
        "ids": found.ids,
        "hidden_states": found.states,
        "pooled": found.pooled(normalize=normalize),
    }
    with new_file(path) as file:
        write_arrays(file, arrays)
