"""Comparisons with PyTorch: figures of a tiny checkpoint, and what goes wrong on the way."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.comparing import comparison as comparing
from lensmith.exporters.comparing import job_process
from lensmith.exporters.comparing.cases import (
    Case,
    benchmark_image,
    photo,
    read_samples,
    read_tasks,
    spread_over_tasks,
)
from lensmith.exporters.comparing.comparison import CompareOptions, compare
from lensmith.exporters.comparing.contender import SPARE_TOKENS, Assignment, _answers
from lensmith.exporters.comparing.distributions import compare_with, log_softmax, losses
from lensmith.exporters.comparing.runners import (
    BundleRunner,
    Runner,
    continued,
    text_mask,
)
from lensmith.exporters.comparing.tensor_outcomes import _scores
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.reports.records import Report
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.prompt.requests import Request
from lensmith.targets.errors import InputError, LensmithError
from PIL import Image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("qwen3-vl-2b", tmp_path_factory.mktemp("compare") / "tiny", tiny=True)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Bundle:
    return export(prepare(checkpoint, Options(precision="fp32")), checkpoint.with_name("bundle"))


@pytest.fixture(scope="module")
def tasks(checkpoint: Path) -> Path:
    """Three samples of two tasks, with no, one and two images."""
    folder = checkpoint.with_name("tasks")
    folder.mkdir()
    for name in ("a.png", "b.png"):
        photo((96, 64), seed=ord(name[0])).save(folder / name)
    rows = [("read", []), ("read", ["a.png"]), ("compare", ["a.png", "b.png"])]
    lines = [json.dumps({"task": t, "images": i, "prompt": "What is it?", "answer": "A lion"}) for t, i in rows]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder / "tasks.jsonl"


@pytest.fixture(scope="module")
def report(bundle: Bundle, checkpoint: Path, tasks: Path) -> Report:
    pytest.importorskip("torch")
    options = CompareOptions(dtypes=("float32",), threads=1, repeats=1, tasks=tasks, image=tasks.parent / "a.png",
                             decode_steps=3, command="lensmith compare")  # fmt: skip
    return compare(bundle.path, checkpoint, options)


def test_exact_bundle_agrees_with_its_checkpoint(report: Report) -> None:
    assert [row.where for row in report.agreement] == ["answers", "prompts"]
    for row in report.agreement:
        assert row.contender == "lensmith fp32"
        assert row.kl_max < 1e-5
        assert row.top1 == 1.0
        assert sum(row.histogram) == row.positions > 0
    ours, reference = (report.perplexity[name] for name in ("lensmith fp32", "PyTorch float32"))
    assert ours == pytest.approx(reference, rel=1e-4)


def test_exact_bundle_answers_as_its_checkpoint(report: Report) -> None:
    assert [(score.task, score.samples) for score in report.tasks] == [("read", 2), ("compare", 1)]
    assert all(score.only_reference == score.only_bundle == 0 for score in report.tasks)


def test_every_contender_is_measured(report: Report) -> None:
    assert [contender.name for contender in report.contenders] == ["lensmith fp32", "PyTorch float32"]
    for contender in report.contenders:
        assert contender.load_ms > 0
        assert contender.first_token_ms > 0
        assert contender.decode_tokens_per_s.median > 0
        assert contender.peak_memory_bytes > 50_000_000
    work = report.workload
    assert (work.width, work.height, work.decode_steps, work.threads) == (96, 64, 3, 1)
    assert 0 < work.image_tokens < work.prompt_tokens


def test_sizes_are_those_of_the_files(report: Report, bundle: Bundle, checkpoint: Path) -> None:
    assert report.bundle_bytes == sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert weights < report.source_bytes <= sum(path.stat().st_size for path in checkpoint.iterdir())
    parts = {part.name: part for part in report.components}
    assert parts["Decoder matrices"].bundle_bytes == 2 * parts["Decoder matrices"].source_bytes  # from bfloat16
    assert report.ratios["size"] == report.source_bytes / report.bundle_bytes


def test_a_benchmark_runs_on_both(bundle: Bundle, checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    """Pictures that are in the file itself, and answers that count by degrees."""
    pytest.importorskip("torch")
    picture = base64.b64encode((tasks.parent / "a.png").read_bytes()).decode()
    rows = ["index\timage\tquestion\tanswer", f"0\t{picture}\tWhat?\t['a', 'b']", "1\t0\tWhy?\tc"]
    (tmp_path / "DocVQA_VAL.tsv").write_text("\n".join(rows), encoding="utf-8")
    options = CompareOptions(("float32",), 1, 1, tmp_path / "DocVQA_VAL.tsv", decode_steps=1)
    made = compare(bundle.path, checkpoint, options)
    (score,) = made.tasks
    assert (score.task, score.samples, score.metric) == ("DocVQA", 2, "ANLS")
    assert score.reference_accuracy == score.bundle_accuracy
    assert made.samples == "2 samples of DocVQA_VAL.tsv with its answers"
    assert Report.from_json(made.to_json()) == made


def test_report_survives_json(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


class Parrot:
    """Answers with what it is told, and records how many tokens it may say."""

    eos_token_ids = (0,)

    def __init__(self, tokenizer: Any, says: str) -> None:
        self.tokenizer, self.says = tokenizer, says
        self.limits: list[int] = []

    def prepare(self, case: Case) -> None:
        return None

    def greedy(self, request: Request, tokens: int) -> list[int]:
        self.limits.append(tokens)
        ids: list[int] = self.tokenizer.encode(self.says).ids
        return ids


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> BundleRunner:
    return BundleRunner(bundle.path, threads=1)


def test_wrong_answers_count_as_wrong(runner: BundleRunner) -> None:
    cases = (Case("read", (), "?", "lion"), Case("read", (), "?", "crow"))
    job = Assignment("x", "b", "c", None, 1, 1, "i", "p", 1, cases, (), "t", False, True)
    parrot = Parrot(runner.tokenizer, " lion\n")
    said = _answers(job, cast(Runner, parrot))
    (score,) = _scores(cases, ["lion", "crow"], said)
    assert (score.samples, score.both, score.only_reference, score.only_bundle) == (2, 1, 1, 0)
    assert (score.reference_accuracy, score.bundle_accuracy) == (1.0, 0.5)
    assert parrot.limits[0] == len(runner.tokenizer.encode("lion").ids) + SPARE_TOKENS


def test_logits_of_text_are_those_of_a_whole_prefill(runner: BundleRunner, tasks: Path) -> None:
    request = runner.prepare(read_tasks(tasks)[2])
    whole = continued(request, np.array([5, 6, 7], np.int64))
    positions = np.flatnonzero(text_mask(whole))
    found = runner.logits(whole, positions)
    expected = runner.model.prefill(whole, num_logits=len(whole.prompt), reuse=False)
    np.testing.assert_allclose(found, expected[positions], rtol=1e-3, atol=1e-4)


def test_timed_answers_start_with_nothing_cached(runner: BundleRunner, tasks: Path) -> None:
    image = str(tasks.parent / "a.png")
    first, second = (runner.time(image, "What is it?", 2) for _ in range(2))
    assert first.reused_tokens == second.reused_tokens == 0
    assert second.new_tokens == 3
    assert second.vision_ms > 0


def test_distances_of_known_distributions() -> None:
    reference = log_softmax(np.log(np.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], np.float32)))
    values = log_softmax(np.log(np.array([[0.5, 0.25, 0.25], [0.05, 0.9, 0.05]], np.float32)))
    kl, same = compare_with(reference, values)
    assert kl == pytest.approx([0.0, 0.85 * np.log(18)], abs=1e-6)
    assert same == [True, False]
    assert losses(reference, np.array([1, 0])) == pytest.approx([np.log(4), -np.log(0.9)])


def test_known_distances_of_large_logits() -> None:
    """Far beyond what exponentials hold: only differences count."""
    small = np.array([[0, 1, 2], [-3, 0, 3]], np.float32)
    for shift in (1e4, -1e4):
        np.testing.assert_allclose(log_softmax(small + np.float32(shift)), log_softmax(small), atol=1e-3)
    assert compare_with(log_softmax(small), log_softmax(small))[0] == [0.0, 0.0]
    assert min(compare_with(log_softmax(small), log_softmax(small * np.float32(1 + 2**-23)))[0]) >= 0


def test_bundle_process_imports_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'onnx_ir', 'matplotlib'}"
    code = "import sys, lensmith.exporters.comparing.contender; "
    code += f"found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, env=job_process.job_environment())


@pytest.fixture
def job(bundle: Bundle, checkpoint: Path, tasks: Path, tmp_path: Path) -> Assignment:
    options = CompareOptions(threads=1, repeats=1, tasks=tasks, image=tasks.parent / "a.png", decode_steps=1)
    return comparing._jobs(bundle, open_checkpoint(checkpoint), options, tmp_path)[-1]


def test_unusable_input_of_a_contender_is_told(job: Assignment, tmp_path: Path) -> None:
    broken = dataclasses.replace(job, bundle=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"lensmith fp32: .*nowhere is not a bundle"):
        job_process.run_job(broken, tmp_path / "run", lambda *_: None)


def test_crash_of_a_contender_is_told(job: Assignment, tmp_path: Path) -> None:
    broken = dataclasses.replace(job, decode_steps=cast(int, "three"))
    with pytest.raises(LensmithError, match="lensmith fp32 ended with exit code 1: TypeError"):
        job_process.run_job(broken, tmp_path / "run", lambda *_: None)


def test_other_weights_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    other = synth("qwen3-vl-2b", tmp_path / "other", tiny=True, seed=1)
    with pytest.raises(InputError, match=r"not exported from .*other: model.safetensors differs"):
        compare(bundle.path, other)


def test_killed_contender_points_at_memory() -> None:
    assert "memory" in str(job_process.job_failure("PyTorch float32", -9, {}, ""))


def test_bundle_of_another_checkpoint_is_refused(job: Assignment, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "0.npz", prompt=np.array([1]), answer=np.array([1]), log_probabilities=np.zeros((1, 4), np.float32)
    )
    other = dataclasses.replace(job, traces=str(tmp_path), traced=(0,))
    with pytest.raises(InputError, match="other token ids"):
        job_process.run_job(other, tmp_path / "run", lambda *_: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtypes": ("float23",)}, "did you mean 'float32'"),
        ({"dtypes": ()}, "expected different ones"),
        ({"dtypes": ("float32", "float32")}, "expected different ones"),
        ({"repeats": 0}, "repeats is 0"),
        ({"decode_steps": -1}, "decode steps is -1"),
    ],
)
def test_unusable_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompareOptions(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no samples"),
        ("{", "line 1 of .* is not JSON"),
        ('{"task": "a", "images": [], "prompt": "p"}', "line 1 of .* needs 'answer', a str"),
        ('\n{"task": "a", "images": ["x.png"], "prompt": "p", "answer": "a"}', "line 2 .* not there: .*x.png"),
    ],
)
def test_unusable_tasks_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_tasks(tmp_path / "tasks.jsonl")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_signs_that_end_lines_elsewhere_stand_in_texts(sign: str, end: str, tmp_path: Path) -> None:
    rows = [{"task": "read", "images": [], "prompt": f"one{sign}two {number}", "answer": sign} for number in (1, 2)]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "tasks.jsonl").write_bytes(text.encode())
    for read in (read_tasks, read_samples):
        assert [(case.prompt, case.answer) for case in read(tmp_path / "tasks.jsonl")] == [
            (row["prompt"], row["answer"]) for row in rows
        ]


def test_limit_counts_by_task(tasks: Path) -> None:
    assert [case.task for case in read_tasks(tasks, limit=1)] == ["read", "compare"]


def test_traced_cases_are_spread_over_tasks() -> None:
    cases = [Case(task, (), "?") for task in ("a", "a", "a", "b", "b", "c")]
    assert spread_over_tasks(cases, 4) == [0, 1, 3, 5]
    assert spread_over_tasks(cases, 100) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("limits", "room", "size"),
    [
        ({"max_pixels": 1 << 24, "max_image_tokens": 16384}, 8000, (896, 672)),
        ({"max_pixels": 60_000, "max_image_tokens": 16384}, 8000, (256, 192)),
        ({"max_pixels": 1 << 24, "max_image_tokens": 16384}, 12, (128, 96)),
    ],
)
def test_timed_photo_fits_the_limits(limits: dict[str, int], room: int, size: tuple[int, int], tmp_path: Path) -> None:
    with Image.open(benchmark_image(tmp_path, limits, 32, room)) as image:
        assert image.size == size
