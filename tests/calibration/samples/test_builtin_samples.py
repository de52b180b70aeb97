"""Built-in samples: drawn by code from a seed, of many kinds, and right for the template of a model."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from lensmith.calibration.samples.builtin.kinds import BuiltinSamples, Ways
from lensmith.calibration.samples.builtin.pictures import PICTURES
from lensmith.calibration.samples.builtin.questions import (
    ALONE,
    ANY,
    CALLS,
    OF_PAIRS,
    OF_PICTURES,
)
from lensmith.calibration.samples.calibration_samples import choose_samples
from lensmith.calibration.samples.sample_preparation import _ways, open_samples, prompts_of
from lensmith.exporters.comparing.cases import Case
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.media.image_files import open_image
from PIL import Image

from tests.helpers.layered import Bench, chosen
from tests.paths import TINY

KINDS = {*PICTURES, *ALONE, "pairs", "tools", "free text"}
ROUND = 2 * len(PICTURES) + len(ALONE) + 3  # samples until each kind had its turn


def drawn(folder: Path, count: int = ROUND, seed: int = 0, ways: Ways | None = None) -> list[Case]:
    return [*islice(BuiltinSamples(folder, seed, ways or Ways()).cases(), count)]


def content(cases: list[Case]) -> list[object]:
    return [(c.task, c.prompt, c.tools, c.free, [Path(p).read_bytes() for p in c.images]) for c in cases]


def test_the_same_from_a_seed_and_others_from_another(tmp_path: Path) -> None:
    first, again, other = (drawn(tmp_path / name, 30, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert content(first) == content(again)
    assert not {case.images for case in first if case.images} & {case.images for case in other}
    pictures = ({Path(p).read_bytes() for c in cases for p in c.images} for cases in (first, other))
    assert not set.intersection(*pictures)


def test_all_kinds_have_their_turns(tmp_path: Path) -> None:
    cases = drawn(tmp_path, 3 * ROUND)
    counts = Counter(case.task for case in cases)
    assert set(counts) == KINDS
    assert {count for kind, count in counts.items() if kind in PICTURES} == {6}
    assert {count for kind, count in counts.items() if kind not in PICTURES} == {3}
    assert {len(case.images) for case in cases if case.task == "pairs"} == {2}
    assert {len(case.images) for case in cases if case.task == "free text"} == {0, 1}
    assert [case for case in cases[:2] if case.images]  # few samples have pictures, too
    asked = Counter((case.task, case.prompt, case.images, case.free) for case in cases)
    assert max(asked.values()) == 1
    assert len({case.prompt for case in cases}) > 2 * ROUND
    assert all(case.answer is None for case in cases)


@pytest.mark.parametrize("seed", range(5))
def test_some_kinds_are_only_judged(seed: int, tmp_path: Path) -> None:
    """Some of pictures and some of text, others with another seed, and never among those that are calibrated on."""
    made = BuiltinSamples(tmp_path, seed, Ways())
    assert made.held_back | made.taught == KINDS
    assert len(made.held_back) in (3, 4)
    assert {bool(case.images) for case in islice(made.cases(made.held_back), 20)} == {False, True}
    found = choose_samples(None, tmp_path, limit=40, seed=seed, ways=Ways())
    assert {case.task for case in found.foreign} == made.held_back
    assert {case.task for case in (*found.calibrated, *found.held_out)} == made.taught
    assert len(found.foreign) == len(found.held_out) // 2


def test_every_kind_is_only_judged_with_some_seed(tmp_path: Path) -> None:
    assert frozenset.union(*(BuiltinSamples(tmp_path, seed, Ways()).held_back for seed in range(5))) == KINDS


def test_what_a_template_lacks_is_left_out(tmp_path: Path) -> None:
    assert {case.task for case in drawn(tmp_path, 60, ways=Ways(tools=False))} == KINDS - {"tools"}
    assert {case.task for case in drawn(tmp_path, 60, ways=Ways(free=False))} == KINDS - {"free text"}


def test_every_question_can_be_filled_in(tmp_path: Path) -> None:
    questions = [*ANY, *OF_PAIRS, *CALLS, *(q for part in (OF_PICTURES, ALONE) for qs in part.values() for q in qs)]
    named = {name for question in questions for name in re.findall(r"(?<!\{)\{(\w*)\}(?!\})", question)}
    assert named <= {"shape", "colour", "word", "words", "passage", "numbers", "number", "small", "large"}
    for case in drawn(tmp_path, 20 * ROUND):
        assert not re.search(r"\{(shape|colour|words?|passage|numbers?|small|large)\}|\{\{|\}\}$", case.prompt), (
            case.prompt
        )


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_show_something(kind: str, tmp_path: Path) -> None:
    cases = [case for case in drawn(tmp_path, 4 * ROUND) if case.task == kind]
    pictures = {case.images[0]: np.asarray(open_image(case.images[0])) for case in cases}
    assert len(pictures) == len(cases) // 2
    for pixels in pictures.values():
        assert 200 * 200 < pixels.shape[0] * pixels.shape[1] <= 448 * 336
        assert pixels.astype(float).std() > 8


def ink(path: str) -> float:
    """How much of a picture is unlike its corner."""
    pixels = np.asarray(Image.open(path), int)
    return float((np.abs(pixels - pixels[-1, -1]).sum(2) > 120).mean())


def test_text_is_within_its_picture(tmp_path: Path) -> None:
    """The last rows and columns have paper alone."""
    cases = [case for case in drawn(tmp_path, 12 * ROUND) if case.task == "lettering"]
    for case in cases[::2]:
        pixels = np.asarray(Image.open(case.images[0]), int)
        edge = np.concatenate([pixels[-2:].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
        assert (edge == pixels[-1, -1]).all()
        assert 0.001 < ink(case.images[0]) < 0.5


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_templates_take_every_kind(name: str, tmp_path: Path) -> None:
    builder = prompts_of(prepare(TINY / name, Options()))
    ways = _ways(builder)
    assert ways.free
    words = builder.prompts.tokenizer
    for case in drawn(tmp_path, 2 * ROUND, ways=ways):
        sample = builder.build(case)
        text = words.decode(sample.ids.tolist(), skip_special_tokens=False)
        assert sample.task == case.task
        assert len(sample.pictures) == len(case.images)
        assert ("assistant\n" in text) == (not case.free)
        if case.tools:
            assert all(tool["function"]["name"] in text for tool in case.tools)
        if case.free:
            assert text.rstrip().endswith(case.prompt.strip() or "user") or case.images
    assert ways.tools == ("tools" in (TINY / name / "chat_template.jinja").read_text())


@pytest.mark.parametrize("bench", ["tarn", "llava of qwen2"], indirect=True)
def test_published_templates_take_every_kind(bench: Bench, tmp_path: Path) -> None:
    builder = prompts_of(bench.job)
    ways = _ways(builder)
    assert ways == Ways()
    assert all(len(builder.build(case).ids) for case in drawn(tmp_path, 2 * ROUND, ways=ways))


def test_texts_that_the_model_begins_are_sampled(tmp_path: Path) -> None:
    """Those of one beginning differ, whatever the temperature of other answers, and are the same again."""
    job = prepare(TINY / "llava", Options())
    runs = []
    for scratch in ("first", "second"):
        samples = open_samples(job, chosen(None, 72, answer_tokens=8, seed=1), tmp_path / scratch)
        runs.append([s.ids.tolist() for s in (*samples.calibrated, *samples.held_out) if s.task == "free text"])
    assert runs[0] == runs[1]
    assert len({tuple(ids) for ids in runs[0]}) == len(runs[0]) > 2
