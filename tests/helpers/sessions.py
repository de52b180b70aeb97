"""Questions for models that are loaded again, and what of their answers is compared."""

from __future__ import annotations

from typing import Any

from lensmith.runtimes import GenerationOptions, Model, user_message
from PIL import Image

from tests.paths import TINY

FILES = sorted((TINY / "heldout" / "images").iterdir())[:3]
SYSTEM = {"role": "system", "content": "Answer in short words, and only about what is seen. " * 6}
ANSWERED = {"role": "assistant", "content": "a red circle"}
OPTIONS = GenerationOptions(max_new_tokens=6, ignore_eos=True)


def pictures(width: int = 288, height: int = 256) -> list[Image.Image]:
    """Pictures of more tokens than a copy of recurrent states is made for."""
    return [Image.open(file).resize((width, height)) for file in FILES]


def taken(model: Model, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of its prompt were not computed again."""
    answer = model.generate(messages, OPTIONS)
    answer.read()
    return answer.ids, answer.timings.reused_tokens


def alone(model: Model, messages: list[dict[str, Any]]) -> list[int]:
    """The tokens of an answer of a model that knows nothing."""
    model.forget()
    found, reused = taken(model, messages)
    assert reused == 0
    return found


def turns(first: dict[str, Any], said: str, question: str) -> list[dict[str, Any]]:
    """The second turn behind a question and its answer."""
    return [first, {"role": "assistant", "content": said}, user_message(question)]
