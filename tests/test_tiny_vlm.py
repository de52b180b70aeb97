"""The trained tiny model: small, loaded by transformers, made by a seeded generator, right about held-out pictures."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

pytest.importorskip("matplotlib", reason="the pictures need lensmith[report]")
pytest.importorskip("transformers", reason="the model needs lensmith[torch]")

from tests.tiny_vlm import scenes
from tests.tiny_vlm.evaluate import Answerer, Case, measure, read_cases
from tests.tiny_vlm.tokenizer import build_tokenizer, task_words

FOLDER = Path(__file__).parent / "tiny_vlm"
CHECKPOINT, HELDOUT = FOLDER / "qwen3_vl", FOLDER / "heldout"


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    """The held-out examples by task."""
    return {task: list(group) for task, group in itertools.groupby(read_cases(HELDOUT), key=lambda case: case.task)}


def test_checkpoint_weighs_less_than_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 6_000_000


def test_heldout_set_weighs_less_than_one_and_a_half_megabytes() -> None:
    assert sum(path.stat().st_size for path in HELDOUT.rglob("*") if path.is_file()) < 1_500_000


def test_generator_repeats_itself() -> None:
    for task in scenes.TASKS:
        one, two = (scenes.heldout_examples(task, 2, seed=7) for _ in range(2))
        assert [example.questions for example in one] == [example.questions for example in two]
        assert [[image.tobytes() for image in example.images] for example in one] == [
            [image.tobytes() for image in example.images] for example in two
        ]


def test_heldout_set_is_what_the_generator_makes(cases: dict[str, list[Case]]) -> None:
    assert tuple(cases) == scenes.TASKS
    for task, group in cases.items():
        made = [example.questions[0] for example in scenes.heldout_examples(task, len(group))]
        assert [(case.prompt, case.answer) for case in group] == [(asked.prompt, asked.answer) for asked in made]


def test_tokenizer_of_the_checkpoint_is_the_built_one() -> None:
    saved = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved == json.loads(build_tokenizer().to_str())


def test_every_task_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer.encode(space + word).ids) == 1 for word in task_words() for space in ("", " "))


def test_model_answers_heldout_questions(cases: dict[str, list[Case]]) -> None:
    answerer = Answerer(CHECKPOINT)
    for task, group in cases.items():
        assert measure(answerer, group[:10])[task] >= 0.8, task
