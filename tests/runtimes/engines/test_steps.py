"""Steps of one's own that no engine could compute are refused before it is asked, and harm no later answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import load
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.generation.conversation import Conversation
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.runtimes.prompt.requests import Request
from lensmith.targets.errors import InputError

Taken = Callable[[Conversation, Request], Any]
ONE = np.array([1])


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    loaded = load(tiny_bundle, threads=1, context=256)
    assert isinstance(loaded, Model)
    return loaded


def run(ids: Any, positions: Any = None, **wanted: Any) -> Taken:
    return lambda conversation, request: conversation.run(
        Step(ids, text_positions(1, request.next_position) if positions is None else positions, **wanted)
    )


STEPS: dict[str, Taken] = {
    "a token below": run(np.array([-1])),
    "a token above": run(np.array([10**6])),
    "a token that wraps": run(np.array([1 << 62])),
    "no token": run(np.array([], np.int64), np.zeros((3, 0), np.int64)),
    "half a token": run(np.array([1.5])),
    "a list": run([1]),
    "a batch": run(np.array([[1]])),
    "too few positions": run(np.array([1, 2])),
    "too many positions": run(ONE, np.zeros((3, 2), np.int64)),
    "flat positions": run(ONE, np.zeros(1, np.int64)),
    "two axes": run(ONE, np.zeros((2, 1), np.int64)),
    "four axes": run(ONE, np.zeros((4, 1), np.int64)),
    "negative positions": run(ONE, np.full((3, 1), -5)),
    "half positions": run(ONE, np.full((3, 1), 0.5)),
    "more logits than tokens": run(ONE, num_logits=2),
    "fewer than no logits": run(ONE, num_logits=-1),
    "half a logit": run(ONE, num_logits=0.5),
    "more hidden states than tokens": run(ONE, num_hidden_states=5),
    "a prompt's logits beyond it": lambda c, r: c.prefill(r, num_logits=10**6),
    "a prompt's logits below none": lambda c, r: c.prefill(r, num_logits=-1),
    "a prompt's half logits": lambda c, r: c.prefill(r, num_logits=1.5),  # type: ignore[arg-type]
    "no chunk": lambda c, r: c.prefill(r, chunk=0),
    "a negative chunk": lambda c, r: c.prefill(r, chunk=-3),
    "a chunk of text": lambda c, r: c.prefill(r, chunk="a"),  # type: ignore[arg-type]
    "back before the beginning": lambda c, r: c.rewind(-1),
    "back by half": lambda c, r: c.rewind(1.5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_that_no_engine_computes(name: str, model: Model) -> None:
    request = model.prepare("How many?")
    before = model.ask("How many?", max_new_tokens=6, ignore_eos=True)
    before.read()
    with model.conversation(request) as conversation:
        conversation.prefill(request)
        with pytest.raises(InputError, match="expected"):
            STEPS[name](conversation, request)
    after = model.ask("How many?", max_new_tokens=6, ignore_eos=True)
    after.read()
    assert after.ids == before.ids


def test_the_last_token_of_the_vocabulary_and_of_the_context(model: Model) -> None:
    """They are taken; what is behind them is refused."""
    request, vocab = model.prepare("How many?"), model.decoder.vocab
    with model.conversation(request) as conversation:
        conversation.prefill(request)
        conversation.run(Step(np.array([vocab - 1]), text_positions(1, request.next_position)))
        with pytest.raises(InputError, match=f"from 0 to {vocab - 1}"):
            conversation.run(Step(np.array([vocab]), text_positions(1, request.next_position + 1)))
        rest = model.decoder.capacity - conversation.length
        following = text_positions(rest + 1, request.next_position + 1)
        with pytest.raises(InputError, match="needs 257 tokens but the context holds 256"):
            conversation.run(Step(np.ones(rest + 1, np.int64), following))
        conversation.run(Step(np.ones(rest, np.int64), following[:, :rest]))
        assert conversation.length == model.decoder.capacity == 256
        with pytest.raises(InputError, match="needs 257 tokens but the context holds 256"):
            conversation.run(Step(ONE, following[:, rest:]))


@pytest.mark.parametrize("path", [None, 3, b"/tmp", ["a"]])
def test_a_bundle_is_a_path(path: Any) -> None:
    with pytest.raises(InputError, match="expected the path"):
        load(path)


@pytest.mark.parametrize("calls", [3, "f", {"function": {}}, [3]])
def test_calls_of_tools_are_a_list_of_objects(calls: Any, model: Model) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": calls}]
    with pytest.raises(InputError, match="tool_calls"):
        model.generate([*said, {"role": "user", "content": "c"}])


@pytest.mark.parametrize("options", [{}, 0, ""])
def test_options_are_no_empty_thing(options: Any, model: Model) -> None:
    with pytest.raises(InputError, match="GenerationOptions"):
        model.ask("a", options=options)


@pytest.mark.parametrize("limit", ["1", 0, -1, 1e12])
def test_limits_are_areas_without_media_too(limit: Any, model: Model) -> None:
    with pytest.raises(InputError, match="max_pixels is"):
        model.ask("a", max_pixels=limit)


def test_a_key_is_not_its_own_neighbour(model: Model) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    with pytest.raises(InputError, match="leave it out"):
        model.generate([*said, {"role": "user", "content": "d"}])
