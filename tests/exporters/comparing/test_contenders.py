"""Both sides of a comparison get the same work and do the same with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.comparing import comparison as comparing
from lensmith.exporters.comparing import contender, job_process, runners
from lensmith.exporters.comparing.cases import (
    QUESTIONS,
    Case,
    benchmark_image,
    builtin_cases,
    photo,
    read_tasks,
    spread_over_tasks,
)
from lensmith.exporters.comparing.comparison import CompareOptions
from lensmith.exporters.comparing.contender import Assignment, run
from lensmith.exporters.comparing.runners import BundleRunner, PyTorchRunner
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.generation.answer import Answer
from lensmith.runtimes.generation.intake import DEFAULT_CONTEXT
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.storage.files import write_json
from lensmith.runtimes.tuning.tuning import USUAL
from lensmith.targets.errors import InputError, LensmithError
from PIL import Image

from tests.helpers import ladder
from tests.paths import TINY

SOURCE = TINY / "qwen3_vl"
STEPS = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(prepare(SOURCE, Options(precision="fp32")), tmp_path_factory.mktemp("pair") / "b", golden="never")


@pytest.fixture(scope="module")
def pair(bundle: Bundle) -> tuple[BundleRunner, PyTorchRunner]:
    ladder.need_torch()
    return BundleRunner(bundle.path, threads=2), PyTorchRunner(SOURCE, bundle.path, dtype="float32", threads=2)


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    """About no image, a wide one, and two of different shapes."""
    names = []
    for index, size in enumerate(((160, 64), (64, 96))):
        names.append(str(tmp_path / f"{index}.png"))
        photo(size, seed=index).save(names[-1])
    return tuple(Case("t", tuple(names[:count]), "What is it?") for count in (0, 1, 2))


def test_both_read_and_answer_alike(pair: tuple[BundleRunner, PyTorchRunner], cases: tuple[Case, ...]) -> None:
    ours, theirs = pair
    for case in cases:
        one, other = ours.prepare(case), theirs.prepare(case)
        assert np.array_equal(one.prompt.ids, other.prompt.ids)
        assert np.array_equal(one.positions, other.positions)
        assert [image.grid for image in one.images] == [image.grid for image in other.images]
        places = np.flatnonzero(runners.text_mask(one))[::2]
        np.testing.assert_allclose(ours.logits(one, places), theirs.logits(other, places), rtol=1e-3, atol=1e-3)
        for tokens in (1, STEPS):
            assert ours.greedy(one, tokens) == theirs.greedy(other, tokens)


def test_both_stop_in_front_of_an_end_token(
    pair: tuple[BundleRunner, PyTorchRunner], cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("t", cases[1].images, "What word is written?")
    monkeypatch.setattr(pair[0], "eos_token_ids", ())
    said = pair[0].greedy(pair[0].prepare(case), 20)
    end = next(token for token in reversed(said) if token != said[0])
    for runner in pair:
        monkeypatch.setattr(runner, "eos_token_ids", (end,))
        assert runner.greedy(runner.prepare(case), 20) == said[: said.index(end)]


def test_both_are_timed_over_the_same_work(
    pair: tuple[BundleRunner, PyTorchRunner], cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past the end of an answer."""
    ours, theirs = pair
    first = [theirs.model.greedy(theirs.prepare(cases[1]), 1, ignore_eos=True).ids[0]]
    monkeypatch.setattr(theirs.model.model.generation_config, "eos_token_id", first)
    asked: list[GenerationOptions] = []
    ask = ours.model.ask

    def noted(question: str, images: list[str], options: GenerationOptions) -> Answer:
        asked.append(options)
        return ask(question, images, options)

    monkeypatch.setattr(ours.model, "ask", noted)
    one, other = (runner.time(cases[1].images[0], "What is it?", STEPS) for runner in pair)
    for name in ("prompt_tokens", "image_tokens", "new_tokens"):
        assert getattr(one, name) == getattr(other, name) > 0, name
    assert one.new_tokens == STEPS + 1
    assert [options.ignore_eos for options in asked] == [True]
    for timings in (one, other):
        assert min(timings.image_ms, timings.vision_ms, timings.prefill_ms, timings.decode_ms) > 0
    request, timings = theirs.prepare(cases[2], made := Timings()), made
    assert timings.image_tokens == sum(len(image.features) for image in request.images)


def test_times_of_several_images_add_up(
    pair: tuple[BundleRunner, PyTorchRunner], cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "_since", lambda _: 3.0)
    theirs, timings = pair[1], Timings()
    monkeypatch.setattr(type(theirs.model), "last_ms", property(lambda _: 5.0, lambda *_: None), raising=False)
    theirs.prepare(cases[2], timings)
    assert (timings.image_ms, timings.vision_ms) == (6.0, 10.0)


def test_pytorch_decoding_is_the_sum_of_its_steps(
    pair: tuple[BundleRunner, PyTorchRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(prefill_ms=7.0, step_ms=(1.0, 2.0, 4.0), ids=[1, 2, 3, 4])
    monkeypatch.setattr(pair[1].model, "greedy", lambda *_, **__: made)
    timings = pair[1].time("", "What is it?", 3)
    assert (timings.prefill_ms, timings.decode_ms, timings.new_tokens) == (7.0, 7.0, 4)


class Stop(Exception):
    """Ends a contender where it would load its weights."""


def test_contenders_load_what_their_job_says(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    def load(*given: Any, **named: Any) -> NoReturn:
        seen.append((given, named))
        raise Stop

    monkeypatch.setattr(runners, "Reference", load)
    monkeypatch.setattr(runners, "Model", load)
    monkeypatch.setattr(runners, "import_torch", lambda: None)
    shared = Assignment(
        "x", str(bundle.path), "there", "bfloat16", 3, 1, "", "?", 1, (), (), "", False, False, "changes"
    )
    for job in (shared, replace(shared, dtype=None)):
        with pytest.raises(Stop):
            run(job)
    (theirs, named), (_, ours) = seen
    assert (theirs, named) == (("there", "bfloat16"), {"threads": 3, "adapter": "changes"})
    assert ours == {"threads": 3, "prefix_bytes": 0, "tuning": USUAL}


def test_memory_is_that_of_the_timed_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(name: str, made: Any = None) -> Callable[..., Any]:
        def noted(*_: object) -> Any:
            done.append(name)
            return made

        return noted

    side = SimpleNamespace(engine="e", load_ms=1.0, time=note("time", Timings()), prepare=note("prepare"),
                           greedy=lambda *_: [],
                           tokenizer=SimpleNamespace(encode=lambda *_, **__: SimpleNamespace(ids=[1]),
                                                     decode=lambda *_, **__: "said"))  # fmt: skip
    monkeypatch.setattr(contender, "_runner", lambda _: side)
    monkeypatch.setattr(contender, "_progress", lambda *_: None)
    monkeypatch.setattr(contender, "peak_memory_bytes", note("memory", 9))
    job = Assignment("x", "b", "c", None, 1, 2, "", "?", 1, (Case("t", (), "?", "a"),), (), "", False, True)
    assert run(job)["answers"] == ["said"]
    assert done == ["time"] * 3 + ["memory", "prepare"]
    assert run(replace(job, answers=False))["answers"] == []


def test_jobs_hold_what_was_chosen(bundle: Bundle, cases: tuple[Case, ...], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f'{{"task": "t{i % 3}", "images": ["0.png"], "prompt": "p{i}", "answer": "a{i}"}}' for i in range(60)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    chosen = CompareOptions(dtypes=("bfloat16", "float32"), threads=3, repeats=4, tasks=Path("tasks.jsonl"), limit=15,
                            image=Path("0.png"), prompt="Look.", decode_steps=9)  # fmt: skip
    checkpoint = replace(open_checkpoint(SOURCE), adapter=Path("changes"))
    jobs = comparing._jobs(bundle, checkpoint, chosen, tmp_path / "traces")
    assert [(job.name, job.dtype, job.is_reference, job.answers) for job in jobs] == [
        ("PyTorch float32", "float32", True, True), ("PyTorch bfloat16", "bfloat16", False, False),
        ("lensmith fp32", None, False, True),
    ]  # fmt: skip
    expected = read_tasks(tmp_path / "tasks.jsonl", 15)
    shared: dict[str, Any] = {"bundle": str(bundle.path), "checkpoint": str(SOURCE),
              "adapter": str(tmp_path / "changes"), "threads": 3, "repeats": 4,
              "image": str(tmp_path / "0.png"), "prompt": "Look.", "decode_steps": 9,
              "cases": tuple(expected), "traced": tuple(spread_over_tasks(expected, comparing.TRACED_CASES)),
              "traces": str(tmp_path / "traces")}  # fmt: skip
    assert len(shared["traced"]) == comparing.TRACED_CASES < len(expected) == 45
    for job in jobs:
        assert {name: getattr(job, name) for name in shared} == shared
    write_json(tmp_path / "job.json", asdict(jobs[0]))
    assert Assignment.read(tmp_path / "job.json") == jobs[0]


def test_jobs_where_nothing_was_chosen(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "available_cores", lambda: 5)
    checkpoint = open_checkpoint(SOURCE)
    jobs = comparing._jobs(bundle, checkpoint, CompareOptions(), tmp_path)
    assert [job.answers for job in jobs] == [False] * 3
    assert {job.threads for job in jobs} == {5}
    assert [case.prompt for case in jobs[0].cases] == [question for _, question in QUESTIONS]
    blind = replace(bundle, content={**bundle.content, "image": {"kind": "none"}})
    jobs = comparing._jobs(blind, checkpoint, CompareOptions(), tmp_path)
    assert jobs[0].image == ""
    assert [case.prompt for case in jobs[0].cases] == [question for images, question in QUESTIONS if not images]
    with pytest.raises(InputError, match="takes no images; leave out the image to time"):
        comparing._jobs(blind, checkpoint, CompareOptions(image=tmp_path / "a.png"), tmp_path)


@pytest.mark.parametrize(("context", "room"), [(1024, 1024 - 32 - 256), (1 << 20, DEFAULT_CONTEXT - 32 - 256)])
def test_the_timed_photo_leaves_room(context: int, room: int, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(comparing, "benchmark_image", lambda *given: asked.append(given))
    limits = {**bundle.content["limits"], "context": context}
    comparing.timed_photo(replace(bundle, content={**bundle.content, "limits": limits}), CompareOptions(), Path("f"))
    assert asked == [(Path("f"), limits, 16, room)]


@pytest.mark.parametrize(
    ("limits", "room", "size"),
    [({"max_pixels": 1 << 24, "max_image_tokens": 12}, 8000, (128, 96)),
     ({"max_pixels": 100, "max_image_tokens": 16384}, 8000, (32, 32)),
     ({"max_pixels": 1 << 24, "max_image_tokens": 16384}, 1 << 20, (896, 672))],
)  # fmt: skip
def test_size_of_the_timed_photo(limits: dict[str, int], room: int, size: tuple[int, int], tmp_path: Path) -> None:
    with Image.open(benchmark_image(tmp_path, limits, 32, room)) as image:
        assert image.size == size


def test_built_in_pictures_differ(tmp_path: Path) -> None:
    """Also the two of one question, about what is different between them."""
    found = builtin_cases(tmp_path)
    names = [name for case in found for name in case.images]
    assert [len(case.images) for case in found] == [images for images, _ in QUESTIONS]
    assert len({Path(name).read_bytes() for name in names}) == len(names)
    assert {Image.open(name).size for name in names} == {(320, 256)}
    assert all(case.answer is None for case in found)


def test_pictures_take_turns_within_a_task() -> None:
    cases = [Case("a", picture, "?") for picture in (("x",), ("x",), ("x",), ("y",), ("y",), ())]
    assert spread_over_tasks(cases, 3) == [0, 3, 5]
    assert spread_over_tasks(cases, 5) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "refused"),
    [("config.json", True), ("model.safetensors", True), ("model-00002-of-00002.safetensors", True),
     ("adapter_config.json", True), ("hf_quant_config.json", True), ("README.md", False), ("tokenizer.json", False)],
)  # fmt: skip
def test_what_weights_depend_on_is_that_of_the_export(name: str, refused: bool) -> None:
    """Changed, new or gone."""
    kept = {"config.json": 1, "model.safetensors": 2, "README.md": 3}
    for recorded, found in ((kept, {**kept, name: 9}), ({**kept, name: 9}, kept)):
        sides = (SimpleNamespace(path="b", content={"source": {"files": recorded}}),
                 SimpleNamespace(path="c", source_files=lambda found=found: found))  # fmt: skip
        if refused:
            with pytest.raises(InputError, match=f"b was not exported from c: {name} differs"):
                comparing.require_source(*cast(Any, sides))
        else:
            comparing.require_source(*cast(Any, sides))


def test_failures_keep_their_kind() -> None:
    """Exit code 2 is for unusable input."""
    for code, kind in ((2, InputError), (1, LensmithError)):
        made = job_process.job_failure("x", code, {"error": "why"}, "")
        assert (type(made), str(made)) == (kind, "x: why")
    assert str(job_process.job_failure("x", 5, {}, "first\nlast\n")) == "x ended with exit code 5: last"
    assert str(job_process.job_failure("x", 9, {}, "")) == "x ended with exit code 9: it printed nothing"
