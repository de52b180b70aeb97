"""Models whose answers are written by the test."""

from __future__ import annotations

import pytest
from lensmith.runtimes import Model
from lensmith.runtimes.generation.sampling import Sampler


def script(monkeypatch: pytest.MonkeyPatch, model: Model, text: str) -> None:
    """Let all answers of a model be one text, and an end token."""
    tokens = model.prompts.tokenizer.encode(text, add_special_tokens=False).ids
    end = min(model.eos_token_ids)

    class Scripted(Sampler):
        def __call__(self, *_: object) -> int:
            self.count = getattr(self, "count", 0) + 1
            return tokens[self.count - 1] if self.count <= len(tokens) else end

    monkeypatch.setattr("lensmith.runtimes.generation.token_loop.Sampler", Scripted)


def xml_call(city: str) -> str:
    """A call of a tool in XML, of two days in a city."""
    parameters = f"<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    return f"<tool_call>\n<function=get_weather>\n{parameters}</function>\n</tool_call>"
