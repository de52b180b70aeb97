"""Samples to calibrate on: pictures, lines of JSON and the built-in set, in an order that follows from the content."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.calibration.layerwise.prepared_samples import BEHIND, IMAGE, TEXT
from lensmith.calibration.samples.builtin.kinds import Ways
from lensmith.calibration.samples.calibration_samples import SampleSet, choose_samples
from lensmith.calibration.samples.sample_preparation import prompts_of
from lensmith.exporters.comparing.cases import Case
from lensmith.targets.errors import InputError

from tests.cli.test_cli_errors import assert_one_sentence
from tests.helpers.extras import Ran
from tests.helpers.ladder import random_image
from tests.helpers.layered import Bench, write_samples

Cli = Callable[..., Ran]


def choose(source: Path | None, scratch: Path, limit: int = 6, seed: int = 0, only: bool = True) -> SampleSet:
    """Without built-in samples beside those of a source."""
    return choose_samples(source, scratch, limit=limit, seed=seed, ways=Ways(), only=only and source is not None)


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random_image(40, 40).save(folder / "a.png")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "rows.jsonl"


def contents(cases: tuple[Case, ...]) -> list[tuple[Any, ...]]:
    """Without paths."""
    return [(c.task, c.prompt, c.answer, [Path(path).read_bytes() for path in c.images]) for c in cases]


def pictures(folder: Path) -> Path:
    for index, suffix in enumerate(("png", "jpg", "JPEG", "webp", "bmp")):
        path = folder / str(index % 2) / f"{index}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        random_image(40 + index, 40).save(path)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    """Also inside of folders; each gets a question, and then another one as long as there is room."""
    folder = pictures(tmp_path / "pictures")
    for limit, count in ((4, 5), (6, 8), (12, 16), (30, 20)):
        found = choose(folder, tmp_path, limit)
        assert (found.source, found.count) == ("pictures", count)
        assert 1 <= len(found.held_out) <= count // 4
        cases = [*found.calibrated, *found.held_out]
        times = Counter(case.images for case in cases)
        assert len(times) == 5
        assert max(times.values()) - min(times.values()) <= 1
        assert len({(case.images, case.prompt) for case in cases}) == count
        assert all(case.prompt and case.answer is None for case in cases)


def test_built_in_samples_are_mixed_in(tmp_path: Path) -> None:
    """A third of all, of kinds of their own; they also take the places that a user's samples leave."""
    rows = [{"prompt": f"q{index}", "images": ["a.png"], "answer": str(index), "task": "mine"} for index in range(40)]
    path = lines(tmp_path / "set", rows)
    found = choose(path, tmp_path / "scratch", 30, only=False)
    tasks = Counter(case.task for case in (*found.calibrated, *found.held_out))
    assert found.count == sum(tasks.values()) == 40
    assert tasks["mine"] == 27
    assert len(tasks) > 5
    assert set(tasks) >= {"mine", "scenes", "pairs"}
    few = choose(pictures(tmp_path / "pictures"), tmp_path / "few", 60, only=False)
    tasks = Counter(case.task for case in (*few.calibrated, *few.held_out))
    assert (tasks["pictures"], few.count) == (20, 80)
    assert contents(choose(path, tmp_path / "again", 30, only=False).calibrated) == contents(found.calibrated)


def test_a_file_of_lines(tmp_path: Path) -> None:
    """A prompt is enough; a folder gives the lines of all its files."""
    rows: list[dict[str, Any]] = [
        {"prompt": "one"},
        {"prompt": "two", "images": ["a.png"]},
        {"prompt": "three", "images": ["a.png", "a.png"], "answer": "3", "task": "count"},
        {"prompt": "four", "answer": "4"},
    ]
    path = lines(tmp_path / "set", rows)
    found = choose(path, tmp_path)
    named = {case.prompt: case for case in (*found.calibrated, *found.held_out)}
    picture = str((tmp_path / "set" / "a.png").resolve())
    assert named["one"] == Case("samples", (), "one", None, given=True)
    assert named["two"] == Case("samples", (picture,), "two", None, given=True)
    assert named["three"] == Case("count", (picture, picture), "three", "3", given=True)
    assert named["four"].answer == "4"
    (path.parent / "more.jsonl").write_text('{"prompt": "five"}')
    assert choose(path.parent, tmp_path).count == 5


def test_the_built_in_set(tmp_path: Path) -> None:
    found = choose(None, tmp_path / "scratch", limit=9)
    assert (found.source, len(found.calibrated), len(found.held_out)) == ("built-in", 9, 3)
    cases = (*found.calibrated, *found.held_out)
    assert {len(case.images) for case in cases} == {0, 1, 2}
    again, other = choose(None, tmp_path / "again", limit=9), choose(None, tmp_path / "other", limit=9, seed=1)
    assert again.sha256 == found.sha256 != other.sha256
    assert contents(again.calibrated) == contents(found.calibrated)


def test_the_order_follows_from_content_and_seed(tmp_path: Path) -> None:
    """Not from the order of lines, names of files or where they lie."""
    rows = [{"prompt": f"q{index}", "images": ["a.png"], "answer": str(index)} for index in range(20)]
    first = choose(lines(tmp_path / "first", rows), tmp_path)
    second = choose(lines(tmp_path / "second", rows[::-1]), tmp_path)
    assert contents(first.calibrated) == contents(second.calibrated)
    assert contents(first.held_out) == contents(second.held_out)
    assert first.sha256 == second.sha256
    other = choose(lines(tmp_path / "first", rows), tmp_path, seed=1)
    assert {case.prompt for case in other.calibrated} != {case.prompt for case in first.calibrated}
    assert other.sha256 != first.sha256
    random_image(41, 40).save(tmp_path / "second" / "a.png")
    assert choose(tmp_path / "second", tmp_path).sha256 != first.sha256


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=60), st.integers(4, 20))
def test_what_is_judged_is_never_calibrated_on(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int]], limit: int
) -> None:
    """Neither it nor a copy; a third as many as are calibrated on, spread over tasks."""
    folder = tmp_path_factory.mktemp("drawn")
    path = lines(folder, [{"task": task, "prompt": str(number), "images": ["a.png"]} for task, number in drawn])
    different = set(drawn)
    if len(different) < 4:
        with pytest.raises(InputError, match=f"{len(different)} different samples"):
            choose(path, folder, limit)
        return
    found = choose(path, folder, limit)
    used, held = (Counter((c.task, int(c.prompt)) for c in cases) for cases in (found.calibrated, found.held_out))
    assert not used & held
    assert max((used + held).values()) == 1
    assert set(used + held) <= different
    wanted = limit + max(1, limit // 3)
    assert found.count == min(wanted, len(different))
    assert len(found.held_out) == found.count // 4
    tasks = Counter(task for task, _ in used + held)
    there = Counter(task for task, _ in different)
    fewest = min((count for task, count in tasks.items() if count < there[task]), default=0)
    assert not fewest or max(tasks.values()) <= fewest + 1  # no task is short while another has more


@pytest.mark.parametrize("bench", ["llava"], indirect=True)
def test_samples_are_prompts_with_their_answers(bench: Bench, tmp_path: Path) -> None:
    found = choose(write_samples(tmp_path / "set", 8), tmp_path)
    builder = prompts_of(bench.job)
    for case in (*found.calibrated, *found.held_out):
        sample = builder.build(case)
        assert len(sample.kinds) == len(sample.ids) == sample.positions.shape[1]
        assert (sample.kinds == IMAGE).sum() == 16 * len(case.images)
        np.testing.assert_array_equal(sample.kinds == IMAGE, sample.ids == bench.model.spec.image_token_id)
        assert len(sample.pictures) == len(case.images)
        assert set(sample.pictures) <= set(builder.pictures)
        behind = sample.kinds[sample.kinds.argmax() :] if case.images else sample.kinds[:0]
        assert TEXT not in behind.tolist()
        assert (BEHIND in sample.kinds.tolist()) == bool(case.images)
        assert bool(sample.answer) == (case.answer is not None)
        if case.answer is not None:
            written = builder.prompts.tokenizer.decode(sample.ids[-sample.answer : -1].tolist())
            assert written == case.answer
            assert sample.ids[-1] == builder.end
            bare = builder.build(replace(case, answer=None))
            np.testing.assert_array_equal(sample.ids[: -sample.answer], bare.ids)
            np.testing.assert_array_equal(sample.positions[:, : -sample.answer], bare.positions)


def nothing(folder: Path) -> Path:
    folder.mkdir()
    return folder


def broken_line(folder: Path) -> Path:
    path = lines(folder, [{"prompt": "a"}])
    path.write_text(path.read_text() + '\n{"prompt": ')
    return path


def damaged_picture(folder: Path) -> Path:
    path = lines(folder, [{"prompt": str(index), "images": ["a.png"]} for index in range(8)])
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])
    return path


def rows(*made: dict[str, Any]) -> Callable[[Path], Path]:
    return lambda folder: lines(folder, [*made])


def four(**values: Any) -> Callable[[Path], Path]:
    return rows(*({"prompt": f"What is it? {index}", "images": ["a.png"], **values} for index in range(4)))


UNUSABLE: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "no such file": (lambda folder: folder / "none.jsonl", "none.jsonl", "expected"),
    "empty folder": (nothing, "set", "expected pictures, or lines of JSON"),
    "empty file": (rows(), "rows.jsonl", "expected"),
    "not JSON": (broken_line, "line 2", "JSON"),
    "no prompt": (rows({"images": ["a.png"]}), "'prompt'", "expected"),
    "images that are no list": (rows({"prompt": "x", "images": "a.png"}), "'images'", "expected"),
    "missing image": (rows({"prompt": "x", "images": ["b.png"]}), "b.png", "not there"),
    "damaged image": (damaged_picture, "a.png", "expected a whole JPEG"),
    "too few": (rows(*({"prompt": str(index), "images": ["a.png"]} for index in range(3))), "3 different", "add some"),
    "copies": (rows(*[{"prompt": "x", "images": ["a.png"]}] * 9), "1 different", "add some"),
    "too long": (four(answer="and " * 400), "the context holds 300", "raise --context"),
}


@pytest.mark.parametrize("bench", ["llava"], indirect=True)
@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_samples(cli: Cli, bench: Bench, tmp_path: Path, case: str) -> None:
    make, thing, next_step = UNUSABLE[case]
    samples, out = make(tmp_path / "set"), tmp_path / "out" / "bundle"
    out.parent.mkdir()
    ran = cli("export", bench.path, "-o", out, "--samples", samples, "--context", 300, "--golden", "never")
    assert_one_sentence(ran, thing, next_step)
    assert list(out.parent.iterdir()) == []


def test_options_about_samples(cli: Cli, tmp_path: Path) -> None:
    """Text alone is no set for a model that sees, unless built-in samples bring pictures; and without any there must
    be others."""
    path = lines(tmp_path / "set", [{"prompt": str(index)} for index in range(8)])
    with pytest.raises(InputError, match="no picture among the 6 samples"):
        choose(path, tmp_path)
    assert any(case.images for case in choose(path, tmp_path / "scratch", only=False).calibrated)
    ran = cli("export", "tests/tiny_vlm/llava", "-o", tmp_path / "out", "--only-samples", "--golden", "never")
    assert_one_sentence(ran, "--only-samples", "add --samples")
