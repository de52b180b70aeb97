"""What a draft head is told, token by token, with a graph that writes it down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.contract import ImageFeatures, Step
from lensmith.runtimes.generation.drafting import DraftHead
from lensmith.runtimes.prompt.prompt_parts import Prompt
from lensmith.runtimes.prompt.requests import EncodedImage, Request
from numpy.typing import NDArray

VOCAB = 100


class Counted:
    """States that are a length."""

    def __init__(self) -> None:
        self.length, self.hidden_states = 0, np.zeros((0, 1), np.float32)

    def rewind(self, length: int) -> None:
        self.length = length


class Written:
    """A graph that guesses the number behind the last token, and whose hidden states are its tokens, negative."""

    def __init__(self) -> None:
        self.fed: list[dict[str, Any]] = []

    def open_states(self) -> Counted:
        return Counted()

    def run(self, states: Counted, step: Step) -> NDArray[Any]:
        assert step.hidden_states is not None
        self.fed.append({"length": states.length, "ids": step.ids.tolist(), "positions": step.positions.tolist(),
                         "images": None if step.images is None else step.images.features[:, 0].tolist(),
                         "logits": step.num_logits, "hidden": step.hidden_states[:, 0].tolist()})  # fmt: skip
        states.length += len(step.ids)
        states.hidden_states = -step.ids[-1:, None].astype(np.float32)
        logits: NDArray[Any] = np.eye(VOCAB, dtype=np.float32)[step.ids[len(step.ids) - step.num_logits :] + 1]
        return logits


def request() -> Request:
    """Eight tokens, those from 3 to 5 of an image, with positions of three axes."""
    ids = np.arange(20, 28)
    prompt = Prompt(ids, np.array([[3, 6]]), np.array([[1, 2, 6]]), np.array([False]))
    image = EncodedImage(b"", (1, 2, 6), ImageFeatures(np.array([[30.0], [40.0], [50.0]], np.float32)))
    return Request(prompt, np.stack([ids + 100, ids + 200, ids + 300]), 128, (image,))


@pytest.mark.parametrize(
    ("begin", "end", "tokens", "images"),
    [
        (0, 1, [21], None),
        (0, 3, [21, 22, 23], [30.0]),  # the last of them is the image's first
        (3, 5, [24, 25], [40.0, 50.0]),
        (5, 6, [26], None),
        (2, 8, [23, 24, 25, 26, 27], [30.0, 40.0, 50.0]),  # nothing is behind the last one yet
        (7, 8, [], None),
    ],
)
def test_an_entry_is_a_hidden_state_and_the_token_behind_it(
    begin: int, end: int, tokens: list[int], images: list[float] | None
) -> None:
    graph = Written()
    head, asked = DraftHead(graph), request()  # type: ignore[arg-type]
    hidden = np.arange(begin, end, dtype=np.float32)[:, None]
    head.follow(asked.prompt.ids, asked, end, hidden)
    if not tokens:
        assert graph.fed == []
        return
    (fed,) = graph.fed
    assert fed["ids"] == tokens
    assert fed["positions"] == [[token + axis for token in tokens] for axis in (100, 200, 300)]
    assert fed["hidden"] == list(range(begin, begin + len(tokens)))
    assert (fed["images"], fed["logits"]) == (images, 0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_guess_follows_from_the_one_before(count: int) -> None:
    """With the hidden states that the head itself has left, one position further on; nothing stays."""
    graph = Written()
    head = DraftHead(graph)  # type: ignore[arg-type]
    assert head.draft(np.array([5, 6]), 40, np.array([[1.0], [2.0]], np.float32), count) == [7, 8, 9, 10][:count]
    first, *others = graph.fed
    assert (first["ids"], first["positions"]) == ([5, 6], [[40, 41]] * 3)
    assert (first["hidden"], first["logits"], first["length"]) == ([1.0, 2.0], 1, 0)
    for place, fed in enumerate(others):
        assert (fed["ids"], fed["positions"]) == ([7 + place], [[42 + place]] * 3)
        assert (fed["hidden"], fed["length"]) == ([-6.0 - place], 2 + place)
    assert len(graph.fed) == count
    assert head.states.length == 2
