"""Where the time of an answer is said to have gone, by a clock that only its parts and its reader move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.generation import token_loop
from lensmith.runtimes.generation.answer import Progress
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.generation.token_loop import TokenLoop

END, STOP = 3, 4  # an end token, and one whose text is the stop string
PROMPT_MS, STEP_MS, READER_MS = 500, 20, 9000


class Prompt:
    ids = np.arange(4)

    def __len__(self) -> int:
        return len(self.ids)


class Stream:
    """Each token is a piece of text."""

    stopped_by: str | None = None

    def push(self, token: int) -> str:
        self.stopped_by = "." if token == STOP else None
        return "" if token == STOP else "x"


def timings(tokens: list[int], patch: pytest.MonkeyPatch) -> Timings:
    """Of a model that gives these tokens to a slow reader."""
    now, rows = [0.0], iter(np.eye(8, dtype=np.float32)[tokens, None])

    def takes(ms: float) -> Any:
        now[0] += ms / 1000
        return next(rows)

    conversation: Any = SimpleNamespace(
        decoder=SimpleNamespace(capacity=64, drafts=False), length=4, reused=0, keep=lambda: None,
        hear=lambda begin, count: None,
        prompts=SimpleNamespace(image_token_id=-1),
        prefill=lambda *_, **__: takes(PROMPT_MS), run=lambda _: takes(STEP_MS),
    )  # fmt: skip
    request: Any = SimpleNamespace(prompt=Prompt(), next_position=4)
    stream: Any = Stream()
    patch.setattr(token_loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    progress, options = Progress(Timings()), GenerationOptions(max_new_tokens=len(tokens))
    for _ in TokenLoop(conversation, request, options, progress, None, {END}).pieces(stream):
        now[0] += READER_MS / 1000
    return progress.timings


@pytest.mark.parametrize(
    ("tokens", "steps"), [([1, 2, 5, 6], 3), ([1, END], 1), ([1, 2, END], 2), ([1, 2, STOP], 2), ([1], 0), ([END], 0)]
)
def test_each_step_behind_the_first_token_counts(
    tokens: list[int], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end token is a step that no piece of text comes of, and what the reader does is none."""
    found = timings(tokens, monkeypatch)
    assert found.new_tokens == len(tokens)
    assert found.prefill_ms == pytest.approx(PROMPT_MS)
    assert found.decode_ms == pytest.approx(steps * STEP_MS, abs=1e-6)
    assert found.tokens_per_s == (pytest.approx(1000 / STEP_MS) if steps else pytest.approx(0, abs=1e-3))
