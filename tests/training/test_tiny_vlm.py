"""The trained tiny models: small, loaded by transformers, made by a seeded generator, right about held-out pictures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the pictures need lensmith[report]")
pytest.importorskip("transformers", reason="the model needs lensmith[torch]")

import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.paths import TINY
from tests.training import hybrid, llava_model, long_tasks, scenes
from tests.training.evaluate import Answerer, Case, measure, read_cases
from tests.training.learners import fill_in
from tests.training.tokenizer import build_tokenizer, task_words
from tests.training.towers import see
from tests.training.tree_decoder import decode
from tests.training.trees import TreePacker

CHECKPOINT, HELDOUT = TINY / "qwen3_vl", TINY / "heldout"
HELDOUT_LONG = TINY / "heldout_long"
SAMPLE_ACCURACY = {"qwen3_5": 0.85, "llava": 0.9}  # of few questions; README.md has that of the whole sets
MODELS = ("qwen3_vl", "qwen3_5", "llava")


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    """The held-out examples by task."""
    return _by_task(HELDOUT)


@pytest.fixture(scope="module")
def long_cases() -> dict[str, list[Case]]:
    """The held-out examples with square pictures and long answers by task."""
    return _by_task(HELDOUT_LONG)


def _by_task(folder: Path) -> dict[str, list[Case]]:
    return {task: list(group) for task, group in itertools.groupby(read_cases(folder), key=lambda case: case.task)}


@pytest.mark.parametrize("model", MODELS)
def test_checkpoint_weighs_less_than_six_megabytes(model: str) -> None:
    assert sum(path.stat().st_size for path in (TINY / model).iterdir()) < 6_000_000


@pytest.mark.parametrize("folder", [HELDOUT, HELDOUT_LONG], ids=lambda folder: folder.name)
def test_heldout_set_weighs_less_than_one_and_a_half_megabytes(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_500_000


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


def test_long_heldout_set_is_what_the_generator_makes(long_cases: dict[str, list[Case]]) -> None:
    assert tuple(long_cases) == long_tasks.ALL_TASKS
    for task, group in long_cases.items():
        made = [example.questions[0] for example in long_tasks.square_examples(task, len(group))]
        assert [(case.prompt, case.answer) for case in group] == [(asked.prompt, asked.answer) for asked in made]
    assert {
        image.width == image.height for group in long_cases.values() for case in group for image in case.images
    } == {True}


@pytest.mark.parametrize("model", MODELS)
def test_tokenizer_of_the_checkpoint_is_the_built_one(model: str) -> None:
    make = {"qwen3_vl": build_tokenizer, "qwen3_5": hybrid.new_tokenizer, "llava": llava_model.new_tokenizer}[model]
    saved = json.loads((TINY / model / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved == json.loads(make().to_str())


def test_long_answers_have_more_than_80_tokens(long_cases: dict[str, list[Case]]) -> None:
    tokenizer = hybrid.new_tokenizer()
    for task in long_tasks.LONG_TASKS:
        assert min(len(tokenizer.encode(case.answer).ids) for case in long_cases[task]) > 80


def test_every_task_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer.encode(space + word).ids) == 1 for word in task_words() for space in ("", " "))


def test_model_answers_heldout_questions(cases: dict[str, list[Case]]) -> None:
    answerer = Answerer(CHECKPOINT)
    for task, group in cases.items():
        assert measure(answerer, group[:10])[task] >= 0.8, task


@pytest.mark.parametrize("model", ["qwen3_5", "llava"])
def test_model_answers_long_heldout_questions(model: str, long_cases: dict[str, list[Case]]) -> None:
    answerer = Answerer(TINY / model)
    sample = [case for task, group in long_cases.items() for case in group[: 3 if task in long_tasks.LONG_TASKS else 6]]
    shares = measure(answerer, sample)
    assert sum(shares.values()) / len(shares) >= SAMPLE_ACCURACY[model], shares
    assert min(shares[task] for task in long_tasks.LONG_TASKS) > 0, shares


def test_training_forward_of_the_hybrid_is_that_of_transformers(long_cases: dict[str, list[Case]]) -> None:
    answerer = Answerer(TINY / "qwen3_5")
    example = long_tasks.square_examples("describe", 1, seed=11)[0]
    example = long_tasks.scale_example(example)
    tree = TreePacker(hybrid.new_tokenizer(), hybrid.FORMAT).pack([example, *long_tasks.square_examples("recite", 1)])
    model = answerer.model
    with torch.inference_mode():
        features = torch.cat([see(model.model.visual, pictures)[0] for pictures in tree.pictures])[tree.order]
        language_model = model.model.language_model
        hidden = decode(language_model, fill_in(model, features, tree), tree)[-1][tree.question == 0]
        ours = model.lm_head(language_model.norm(hidden))
        inputs = answerer.inputs(Case("describe", example.images, example.questions[0].prompt, ""))
        theirs = model(**inputs).logits[0, -1]
    first_answer = int((tree.labels[tree.question == 0] >= 0).nonzero()[0, 0])
    assert torch.allclose(ours[first_answer], theirs, atol=1e-3)


def test_hybrid_keeps_its_wide_tensors_and_mtp_head() -> None:
    with safe_open(TINY / "qwen3_5" / "model.safetensors", "pt") as tensors:
        types = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  (not a dict)
    assert {name for name, dtype in types.items() if dtype == "F32"} == {
        name for name in types if name.endswith(hybrid.WIDE)
    }
    assert {name.split(".")[1] for name in types if name.startswith("mtp.")} == {
        "fc",
        "layers",
        "norm",
        "pre_fc_norm_embedding",
        "pre_fc_norm_hidden",
    }


@pytest.mark.parametrize("model", ["qwen3_5", "llava"])
def test_saved_tokenizer_loads_as_built(model: str, long_cases: dict[str, list[Case]]) -> None:
    loaded = AutoTokenizer.from_pretrained(TINY / model)
    built = {"qwen3_5": hybrid.new_tokenizer, "llava": llava_model.new_tokenizer}[model]()
    text = "".join(f"<|im_start|>user\n{group[0].prompt}<|im_end|>\n" for group in long_cases.values())
    assert loaded(text)["input_ids"] == built.encode(text).ids
