"""Samples that mean nothing to a model, or are all alike, are noticed before they are learned from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.calibration.calibrated_export import float_model
from lensmith.calibration.layerwise.familiarity import Familiarity, familiarity
from lensmith.calibration.layerwise.judge import judge
from lensmith.calibration.samples.sample_preparation import look_through, open_samples
from lensmith.calibration.samples.sample_variety import monotony
from lensmith.exporters.comparing.cases import Case
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.bundle.opening import open_bundle
from PIL import Image

from tests.helpers.extras import Ran
from tests.helpers.ladder import random_image
from tests.helpers.layered import Bench, chosen, write_samples
from tests.paths import TINY

Cli = Callable[..., Ran]


def questions(name: str, count: int = 20) -> list[dict[str, Any]]:
    """Some of a trained model's own, of all tasks."""
    path = TINY / ("heldout" if name == "qwen3_vl" else "heldout_long") / "tasks.jsonl"
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // count]]
    return [{**row, "images": [str(path.parent / image) for image in row["images"]]} for row in rows]


def garbled(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The words that another vocabulary has in the places of these."""
    words = prepare(TINY / name, Options()).tokenizer.library
    order = np.random.default_rng(0).permutation(words.get_vocab_size())

    def other(text: str) -> str:
        ids = words.encode(text, add_special_tokens=False).ids
        return words.decode([int(order[i]) for i in ids]) or "?"

    return [{**row, "prompt": other(row["prompt"]), "answer": other(row["answer"])} for row in rows]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_a_models_own_tasks_are_known_to_it_and_others_words_are_not(name: str, tmp_path: Path) -> None:
    job, rows = prepare(TINY / name, Options()), questions(name)
    for kind, strange in ((rows, False), (garbled(name, rows), True)):
        samples = open_samples(job, chosen(write(tmp_path / "set.jsonl", kind), 8, only_samples=False), tmp_path / "x")
        assert look_through(float_model(job, 1), samples, "nothing is done").strange is strange


def test_losses_are_those_of_the_float_model(tmp_path: Path) -> None:
    """The perplexity of given answers in a judgement is that of the same positions."""
    job = prepare(TINY / "llava", Options())
    model, options = float_model(job, 1), chosen(write(tmp_path / "set.jsonl", questions("llava", 8)), 8)
    samples = open_samples(job, options, tmp_path / "x")
    found = familiarity(model, samples.calibrated, samples.foreign, samples.pictures)
    judged = judge(model, samples.calibrated, samples.pictures, {})["float"]
    assert found.answers == pytest.approx(np.log(judged.perplexity), rel=1e-3, abs=1e-5)
    assert found.chance == pytest.approx(np.log(len(model.checkpoint.tensor(model.head.name).numpy())))
    assert found.sureness < found.chance / 4
    assert found.text is not None
    assert found.known is not None


@pytest.mark.parametrize(
    ("sureness", "answers", "text", "known", "said"),
    [
        (1.0, 5.9, 20.0, 17.0, None), (1.0, 6.1, 3.0, 3.0, "answers"), (1.0, None, 9.0, 5.9, "text"),
        (1.0, None, 8.9, 6.0, None), (1.0, None, 5.9, 1.0, None), (1.0, None, 9.0, None, None),
        (3.1, 9.0, 9.0, 1.0, None), (1.0, None, None, None, None),
    ],
)  # fmt: skip
def test_what_is_strange(
    sureness: float, answers: float | None, text: float | None, known: float | None, said: str | None
) -> None:
    """Where guessing costs 6 nats. A model that knows no words finds nothing strange."""
    found = Familiarity(6.0, sureness, answers, text, known).strange
    assert (found is None) == (said is None)
    assert said is None or f"the {said} of the samples" in str(found)


def test_foreign_samples_end_in_a_warning_and_in_rounding_to_nearest(
    cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write(tmp_path / "set.jsonl", garbled("llava", questions("llava", 12)))
    common = ("export", TINY / "llava", "--golden", "never")
    ran = cli(*common, "-o", tmp_path / "foreign", "--calibrate", "auto", "--samples", rows, "--answer-tokens", 4)
    assert ran.code == 0, ran.err
    assert "set.jsonl is foreign to the model, and weights are rounded to nearest" in " ".join(ran.out.split())
    manifest = open_bundle(tmp_path / "foreign").content
    evidence = manifest["evidence"]["calibration"]
    assert (evidence["kept"], evidence["matrices"], evidence["tried"]) == (False, [], {})
    assert set(evidence["judgement"]) == {"float", "nearest"}
    assert "less likely than words drawn by chance" in evidence["samples"]["warnings"][-1]
    low = {row["reason"].partition(", ")[2] for row in manifest["precision"].values() if row["bits"] == 4}
    assert low == {"rounded to nearest, as the samples are foreign to the model"}
    assert cli(*common, "-o", tmp_path / "plain").code == 0
    plain, foreign = ((tmp_path / name / "decoder.data").read_bytes() for name in ("plain", "foreign"))
    assert plain == foreign  # of the vision encoder, activations of 8 bits are still kept or not by what pictures say
    assert all("rounded to nearest" in row["reason"] for row in manifest["precision"].values() if row["bits"] == 8)
    report = cli("compare", "--help")
    assert report.code == 0


def test_an_untrained_model_finds_nothing_strange(benches: Callable[[str], Bench], tmp_path: Path) -> None:
    job = benches("llava").job
    samples = open_samples(job, chosen(write_samples(tmp_path / "samples"), 8), tmp_path / "x")
    assert not look_through(float_model(job, 1), samples, "").strange


def asked(prompts: Sequence[str], images: Sequence[Path] = ()) -> list[Case]:
    return [
        Case("t", tuple(map(str, images[i : i + 1])), prompt, given=True) for i, prompt in enumerate(prompts)
    ]  # fmt: skip


def test_samples_that_are_all_alike(tmp_path: Path) -> None:
    def drawn(name: str, shade: int) -> Path:
        Image.new("RGB", (40 + shade % 3, 40), (shade, shade, shade)).save(tmp_path / name)
        return tmp_path / name

    frames = [drawn(f"frame{i}.png", 100 + i % 3) for i in range(16)]
    different = []
    for index in range(16):
        random_image(40 + index, 40).resize((4, 4)).resize((40, 40)).save(tmp_path / f"{index}.png")
        different.append(tmp_path / f"{index}.png")
    same = [*monotony(asked(["What word is written?"] * 16, different), "x.jsonl")]
    assert [sentence.partition(",")[0] for sentence in same] == ["the 16 samples of x.jsonl ask the same question"]
    words = [" ".join(f"w{i}{j}" for j in range(5)) for i in range(16)]
    assert [*monotony(asked(words, different), "x.jsonl")] == []
    (views,) = monotony(asked(words, frames), "x.jsonl")
    assert views.startswith("the 16 pictures of x.jsonl show the same view, ")
    two = [f"How many {colour} shapes are there?" for colour in ("red", "blue")] * 4 + ["What is written?"] * 8
    (few,) = monotony(asked(two), "x")
    assert few.startswith("the 16 samples of x ask 2 different questions only, ")
    assert [*monotony(asked(two[:7]), "x")] == []  # too few to tell
    assert [*monotony([Case("pictures", (str(path),), "?") for path in different], "x")] == []  # not a user's words


def test_warnings_of_samples_that_are_alike_reach_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = prepare(TINY / "llava", Options())
    rows = [row for row in questions("llava", 1000) if row["prompt"] == "What word is written?"][:16]
    samples = open_samples(job, chosen(write(tmp_path / "set.jsonl", rows), 12), tmp_path / "x")
    with caplog.at_level(logging.WARNING):
        seen = look_through(float_model(job, 1), samples, "")
    assert len(seen.warnings) == 1
    assert seen.warnings[0] in caplog.text
    assert seen.about(0)["warnings"] == [*seen.warnings]
    assert "warnings" not in samples.about(0)
