"""Answers that a model gives itself to samples without one: its own greedy words, kept when a run is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.calibration.calibrated_export import calibrate, calibrated
from lensmith.calibration.layerwise.prepared_samples import ANSWER
from lensmith.calibration.samples.sample_preparation import Samples, open_samples, prompts_of
from lensmith.exporters.comparing.cases import Case
from lensmith.exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from lensmith.runtimes import load
from lensmith.runtimes.bundle.calibration_evidence import OwnAnswers, read_evidence
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.prompt.positions import rotary_positions

from tests.helpers.extras import Ran
from tests.helpers.layered import chosen
from tests.paths import TINY

Cli = Callable[..., Ran]
QUESTIONS = TINY / "heldout" / "tasks.jsonl"


def bare(folder: Path, count: int = 8, **changes: Any) -> Path:
    """Held-out questions of the trained models without their answers, of all tasks."""
    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()[:: 800 // count]]
    for row in rows:
        row["images"] = [str(QUESTIONS.parent / name) for name in row["images"]]
        del row["answer"]
    rows[0] |= changes
    (folder / "bare.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "bare.jsonl"


def opened(job: Job, samples: Path, scratch: Path, **options: Any) -> Samples:
    return open_samples(job, chosen(samples, 8, **{"answer_tokens": 64, **options}), scratch)


def everything(samples: Samples) -> list[tuple[Case, Any]]:
    """All of a file, without built-in ones."""
    cases = (*samples.chosen.calibrated, *samples.chosen.held_out)
    return [*zip(cases, (*samples.calibrated, *samples.held_out), strict=True)]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_answers_are_those_of_the_float_model(name: str, tmp_path: Path) -> None:
    """And what stands in front of them is the question as it is asked. One of eight may differ by rounding."""
    job = prepare(TINY / name, Options())
    found = everything(opened(job, bare(tmp_path / "set"), tmp_path))
    model = load(export(prepare(TINY / name, Options(precision="fp32")), tmp_path / "float", golden="never").path)
    builder, same = prompts_of(job), 0
    for case, sample in found:
        answer = model.ask(case.prompt, case.images, max_new_tokens=64)
        assert "".join(answer)
        same += sample.ids[-sample.answer :].tolist() == answer.ids
        question = builder.build(case)
        assert sample.own
        assert question.answer == 0
        np.testing.assert_array_equal(sample.ids[: -sample.answer], question.ids)
        assert (sample.kinds == ANSWER).sum() == sample.answer + 1
        assert (sample.kinds[-sample.answer - 1 :] == ANSWER).all()
        grids = np.array([builder.pictures[key].grid for key in sample.pictures]).reshape(-1, 3)
        positions, _ = rotary_positions(sample.ids, grids, builder.positions)
        np.testing.assert_array_equal(sample.positions, positions)
    assert same >= len(found) - 1


def test_given_answers_stay(tmp_path: Path) -> None:
    job = prepare(TINY / "qwen3_vl", Options())
    samples = opened(job, bare(tmp_path / "set", answer="a lion, perhaps"), tmp_path)
    (given,) = [sample for case, sample in everything(samples) if case.answer is not None]
    assert prompts_of(job).prompts.tokenizer.decode(given.ids[-given.answer : -1].tolist()) == "a lion, perhaps"
    assert sum(sample.own for _, sample in everything(samples)) == 7
    assert not given.own
    silent = everything(opened(job, tmp_path / "set" / "bare.jsonl", tmp_path, answer_tokens=0))
    assert sum(sample.answer > 0 for _, sample in silent) == 1


def test_answers_end_with_the_limit_and_with_the_context(tmp_path: Path) -> None:
    questions = bare(tmp_path / "set")
    job = prepare(TINY / "qwen3_vl", Options())
    whole = {case.prompt: sample for case, sample in everything(opened(job, questions, tmp_path / "whole"))}
    for case, sample in everything(opened(job, questions, tmp_path / "short", answer_tokens=2)):
        expected = whole[case.prompt]
        assert sample.answer == min(expected.answer, 2)
        np.testing.assert_array_equal(sample.ids, expected.ids[: len(sample.ids)])
    longest = max(len(sample.ids) - sample.answer for sample in whole.values())
    tight = prepare(TINY / "qwen3_vl", Options(context=longest + 1))
    for _, sample in everything(opened(tight, questions, tmp_path / "tight")):
        assert sample.answer > 0
        assert len(sample.ids) <= longest + 2  # the last token that is chosen needs no place in the cache


def test_sampled_answers_follow_from_the_seed(tmp_path: Path) -> None:
    job, questions = prepare(TINY / "llava", Options()), bare(tmp_path / "set")
    runs = [
        {case.prompt: sample.ids.tolist() for case, sample in everything(opened(job, questions, tmp_path / f"{index}",
                                                                               answer_temperature=2.0, seed=seed))}
        for index, seed in enumerate((1, 1, 2))
    ]  # fmt: skip
    assert runs[0] == runs[1] != runs[2]


def test_an_interrupted_run_goes_on_with_the_same_answers(tmp_path: Path) -> None:
    job, questions = prepare(TINY / "qwen3_vl", Options()), bare(tmp_path / "set")
    options = chosen(questions, 8, answer_tokens=64)
    first, asked = open_samples(job, options, tmp_path / "first"), []

    def stop(stage: str, done: int, total: int) -> None:
        asked.append(total)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_samples(job, options, tmp_path / "second", stop)
    (journal,) = (tmp_path / "second").glob("answers-*.jsonl")
    journal.write_text(journal.read_text() + '\n{"case": "cut o')
    again = open_samples(job, options, tmp_path / "second", lambda *step: asked.append(step[2]))
    assert (asked[0], asked[-1]) == (10, 7)  # two of them of built-in kinds that are only judged
    assert again.sha256 == first.sha256
    assert not [*(tmp_path / "second").glob("speaker-*")]
    other = open_samples(job, replace(options, answer_tokens=3), tmp_path / "second")
    assert other.sha256 != first.sha256


def test_the_manifest_says_what_the_model_answered(tmp_path: Path) -> None:
    """Answers of its own are no right answers, but what is calibrated and judged on."""
    job, options = prepare(TINY / "qwen3_vl", Options()), chosen(bare(tmp_path / "set"), 6, answer_tokens=20)
    bundle = export(job, tmp_path / "bundle", golden="never", integers=calibrated(replace(options, method="mse")))
    evidence = read_evidence(bundle.content)
    assert evidence is not None
    samples = open_samples(job, options, tmp_path / "scratch")
    own = (*samples.calibrated, *samples.held_out, *samples.foreign)
    said = OwnAnswers(len(own), sum(s.answer for s in own), "the model at 8 bits, greedily, 20 tokens at most")
    assert evidence.samples.own_answers == said
    judged = evidence.judged("calibrated")
    assert judged.positions["answers"] == sum(sample.answer for sample in samples.held_out)
    assert not judged.accuracy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "scratch", "set"]
    quiet = calibrate(job, replace(options, method="mse", answer_tokens=0), tmp_path / "quiet", lambda *_: None)
    assert quiet.calibrated.evidence["matrices"] != bundle.content["evidence"]["calibration"]["matrices"]
    assert "own_answers" not in quiet.calibrated.evidence["samples"]


def test_options_of_answers_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    chosen = ("--calibrate", "mse", "--samples", bare(tmp_path / "set"), "--answer-tokens", 5, "--only-samples")
    ran = cli("export", TINY / "llava", "-o", tmp_path / "bundle", *chosen, "--answer-temperature", 0.5,
              "--golden", "never")  # fmt: skip
    assert ran.code == 0, ran.err
    said = open_bundle(tmp_path / "bundle").content["evidence"]["calibration"]["samples"]["own_answers"]
    assert said["by"] == "the model at 8 bits, at temperature 0.5, 5 tokens at most"
    assert said["samples"] == 10
    assert 10 <= said["tokens"] <= 50
