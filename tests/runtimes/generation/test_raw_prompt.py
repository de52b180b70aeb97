"""Going on with a text: what a conversation becomes as a text gives the same tokens as the conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import Model
from lensmith.targets.errors import ContextFull, InputError

from tests.helpers.extras import load

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What colour is the sky?"}]


@pytest.fixture(scope="module", params=["qwen3-vl-2b", "tarn-2b", "vqwen3-4b", "gguf"])
def model(request: pytest.FixtureRequest, made: Callable[[str], Path]) -> Model:
    if request.param == "gguf":
        pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
    return load(made(request.param), threads=1, context=256, device="cpu")


def test_a_conversation_as_a_text(model: Model) -> None:
    model.generate(MESSAGES, max_new_tokens=1).read()  # so that all that follow begin with the same states
    wanted = model.generate(MESSAGES, max_new_tokens=24)
    wanted.read()
    text = model.prompts.render(MESSAGES)
    for prompt in (text, wanted.prompt_ids, wanted.prompt_ids.tolist()):
        answer = model.complete(prompt, max_new_tokens=24)
        assert answer.read() == wanted.text
        assert answer.ids == wanted.ids
        assert np.array_equal(answer.prompt_ids, wanted.prompt_ids)
        assert answer.timings.prompt_tokens == len(wanted.prompt_ids)
    stop = wanted.text[2:4]
    cut = model.complete(text, max_new_tokens=24, stop=["never said", stop])
    assert (cut.read(), cut.stopped_by) == (wanted.text[: wanted.text.index(stop)], stop)
    assert wanted.stopped_by is None


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "the prompt is empty"), ([], {}, "expected a text, or a list of token ids"), (5, {}, "expected a text"),
    ([1, "a"], {}, "the token 'a'"), ([True], {}, "the token True"), ([-1], {}, "expected ids from 0"),
    ([1 << 40], {}, "expected ids from 0"), (MESSAGES, {}, "the prompt has the token"),
    ("a", {"thinking_budget": 3}, "complete has no 'thinking_budget'"), ("a", {"tools": []}, "complete has no 'tools'"),
    ("a", {"max_new_tokens": 0}, "max_new_tokens is 0"), ("a", {"prompt_logprobs": True}, "only with logprobs"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "options", "words"), WRONG)
def test_what_is_no_prompt(tiny_bundle: Path, prompt: Any, options: dict[str, Any], words: str) -> None:
    model = load(tiny_bundle, threads=1, context=64, device="cpu")
    with pytest.raises(InputError, match=words):
        model.complete(prompt, **options)
    with pytest.raises(ContextFull):
        model.complete("word " * 100)
