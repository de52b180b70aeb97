"""Other programs by stand-ins for them: what they are asked, and what is measured."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from lensmith.exporters.comparing.other_program import OnnxRuntimeGenAi

WORDS = ["<user>", "say", "lion", "tiger", "bear", "<end>"]
PROMPT = [0, 1]


class FakeGenAi:
    """onnxruntime-genai with one token for each word, which counts upwards and ends at the last."""

    def __init__(self) -> None:
        self.overlays = list[Any]()
        self.options = list[dict[str, Any]]()
        self.steps = 0

    def Config(self, folder: str) -> Any:
        assert folder == "folder"
        return SimpleNamespace(overlay=lambda text: self.overlays.append(json.loads(text)))

    def Model(self, config: Any) -> str:
        return "model"

    def Tokenizer(self, model: str) -> Any:
        def template(messages: str, *, add_generation_prompt: bool) -> str:
            assert add_generation_prompt
            return " ".join(["<user>", json.loads(messages)[0]["content"]])

        return SimpleNamespace(
            apply_chat_template=template,
            encode=lambda text: [WORDS.index(word) for word in text.split()],
            decode=lambda ids: " ".join(WORDS[token] for token in ids),
        )

    def GeneratorParams(self, model: str) -> Any:
        return SimpleNamespace(set_search_options=lambda **chosen: self.options.append(chosen))

    def Generator(self, model: str, params: Any) -> Any:
        ids, most = list[int](), self.options[-1]["max_length"]

        def step() -> None:
            self.steps += 1
            assert len(ids) < most
            ids.append(min(ids[-1] + 1, len(WORDS) - 1))

        return SimpleNamespace(
            append_tokens=ids.extend,
            generate_next_token=step,
            is_done=lambda: len(ids) == most or ids[-1] == len(WORDS) - 1,
            get_sequence=lambda _: ids,
        )


@pytest.fixture
def genai(monkeypatch: pytest.MonkeyPatch) -> FakeGenAi:
    fake = FakeGenAi()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", fake)
    return fake


def test_threads_are_those_of_the_job(genai: FakeGenAi) -> None:
    OnnxRuntimeGenAi(["folder"], 3)
    assert genai.overlays[0]["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 3


@pytest.mark.parametrize(("tokens", "text"), [(2, "lion tiger"), (9, "lion tiger bear <end>")])
def test_answers_are_what_comes_behind_the_prompt(genai: FakeGenAi, tokens: int, text: str) -> None:
    assert OnnxRuntimeGenAi(["folder"], 1).answer("say", [], tokens) == (text, len(PROMPT))
    assert genai.options == [{"do_sample": False, "max_length": len(PROMPT) + tokens}]


def test_an_answer_is_timed_to_its_whole_length(genai: FakeGenAi) -> None:
    first_ms, decode_ms, tokens = OnnxRuntimeGenAi(["folder"], 1).timed("say", [], 7)
    assert genai.options == [{"do_sample": False, "max_length": 10, "min_length": 10}]
    assert genai.steps == 8
    assert tokens == len(PROMPT)
    assert min(first_ms, decode_ms) > 0


def test_the_context_bounds_it(genai: FakeGenAi) -> None:
    OnnxRuntimeGenAi(["folder"], 1, context=5).answer("say", [], 100)
    assert genai.options[0]["max_length"] == 5


def test_images_are_refused(genai: FakeGenAi) -> None:
    with pytest.raises(ValueError, match="takes no images: its builder makes the decoder of this model alone"):
        OnnxRuntimeGenAi(["folder"], 1).timed("say", ["a.png"], 1)
