"""One side of a comparison, in a process of its own: `python -m lensmith.exporters.comparing.contender REQUEST.json`.

Reads a job as JSON, writes `result.json` next to it and prints its progress. The reference also writes a trace for each
case that distributions are compared on: its token ids and log-probabilities, which the other sides read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtimes.engines.contract import Ints
from ...runtimes.generation.timings import Timings
from ...runtimes.process.lifeline import end_with_parent
from ...runtimes.process.memory import peak_memory_bytes
from ...runtimes.prompt.requests import Request
from ...runtimes.storage.files import read_json, write_json
from ...targets.errors import InputError, LensmithError
from .cases import Case
from .distributions import compare_with, log_softmax, losses
from .encoder_runners import FeatureRunner, Timed, encoder_runner
from .machine import pin
from .runners import (
    BundleRunner,
    PyTorchRunner,
    Runner,
    continued,
    text_mask,
)

CONTINUATION = 24  # tokens of the reference's own answers, where no answers are given
LISTS = ("images", "tools", "answers", "options")  # of a case
SPARE_TOKENS = 8  # that an answer may be longer than the right one


@dataclass(frozen=True)
class Assignment:
    """What one contender has to do."""

    name: str
    bundle: str
    checkpoint: str
    dtype: str | None  # of PyTorch; None runs the bundle
    threads: int
    repeats: int
    image: str  # a path; empty for a model without images
    prompt: str
    decode_steps: int
    cases: tuple[Case, ...]
    traced: tuple[int, ...]  # cases that distributions are compared on
    traces: str  # folder
    is_reference: bool
    answers: bool  # whether to answer all cases
    adapter: str | None = None  # that is merged into the checkpoint
    encoder: bool = False  # whether the model encodes images and says nothing
    quantizer: str | None = None  # of PyTorch's matrices, a row of QUANTIZERS
    strict: bool = True  # whether other token ids than the reference's are an error, or a note
    pinned: bool = False  # to as many cores as it has threads
    files: tuple[str, ...] = ()  # of another program
    program: str | None = None  # the other program, a row of PROGRAMS in other_program.py
    interpreter: str | None = None  # the Python that has it
    tuned: bool = False  # whether bundles run by what `lensmith tune` found here, as nobody chose the threads

    @classmethod
    def read(cls, path: Path) -> Assignment:
        """Read what `write_json(path, asdict(job))` wrote."""
        data = read_json(path)
        cases = tuple(Case(**{**row, **{name: tuple(row[name]) for name in LISTS}}) for row in data.pop("cases"))
        return cls(**{**data, "cases": cases, "traced": tuple(data["traced"]), "files": tuple(data["files"])})


def run(job: Assignment) -> dict[str, Any]:
    """All measurements of a job: speed first, so that its memory is not that of the measurements behind it."""
    if job.encoder:
        encoder = encoder_runner(job.bundle, job.checkpoint, job.dtype, job.threads, tuned=job.tuned)
        return {**_costs(job, encoder), "features": _features(job, encoder)}
    runner = _runner(job)
    return {
        **_costs(job, runner),
        **_told_distributions(job, runner),
        "answers": _answers(job, runner) if job.answers else [],
    }


def _costs(job: Assignment, runner: Timed) -> dict[str, Any]:
    timings = _times(job, runner)
    return {
        "engine": runner.engine,
        "load_ms": runner.load_ms,
        "timings": [asdict(timing) for timing in timings],
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _runner(job: Assignment) -> Runner:
    if job.dtype is None:
        return BundleRunner(job.bundle, threads=job.threads, tuned=job.tuned)
    quantizer = {"quantizer": job.quantizer} if job.quantizer else {}
    return PyTorchRunner(
        job.checkpoint, job.bundle, dtype=job.dtype, threads=job.threads, adapter=job.adapter, **quantizer
    )


def _features(job: Assignment, runner: FeatureRunner) -> list[float]:
    """How far the features of each image are from the reference's: the root of the relative mean square error."""
    errors = []
    for index in job.traced:
        path = Path(job.traces) / f"{index}.npy"
        found = np.concatenate([runner.features(image).ravel() for image in job.cases[index].images])
        if job.is_reference:
            np.save(path, found)
        elif (wanted := np.load(path, allow_pickle=False)).shape != found.shape:
            raise InputError("the bundles make other numbers of features of the same image; compare those of one model")
        else:
            errors.append(float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30)))
    return errors


def _told_distributions(job: Assignment, runner: Runner) -> dict[str, Any]:
    """The distributions, or why there are none, where the others' report goes on without them."""
    try:
        return {"distributions": _distributions(job, runner)}
    except InputError as error:
        if job.strict:
            raise
        return {"distributions": [], "note": str(error)}


def _times(job: Assignment, runner: Timed) -> list[Timings]:
    timings = []
    for index in range(job.repeats + 1):
        _progress("speed", index, job.repeats + 1)
        timings.append(runner.time(job.image, job.prompt, job.decode_steps))
    return timings[1:]  # the first one is for warming up


def _distributions(job: Assignment, runner: Runner) -> list[dict[str, Any]]:
    rows = []
    for done, index in enumerate(job.traced):
        _progress("distributions", done, len(job.traced))
        path, request = Path(job.traces) / f"{index}.npz", runner.prepare(job.cases[index])
        if job.is_reference:
            rows.append(_write_trace(path, job.cases[index], runner, request))
        else:
            rows.append(_compare_with_trace(path, runner, request))
    return rows


def _write_trace(path: Path, case: Case, runner: Runner, request: Request) -> dict[str, Any]:
    """Saves token ids and log-probabilities [text positions, vocab] of a prompt with its answer."""
    answer = np.array(_answer_ids(case, runner, request), np.int64)
    ids, positions = _sequence(request, answer)
    values = log_softmax(runner.logits(ids, positions))
    np.savez(path, prompt=request.prompt.ids, answer=answer, log_probabilities=values)
    return {"losses": losses(values, answer)}


def _answer_ids(case: Case, runner: Runner, request: Request) -> list[int]:
    """The answer with its end token; without one, what the reference says."""
    if case.answer is None:
        return runner.greedy(request, CONTINUATION) or [runner.eos_token_ids[0]]
    ids: list[int] = runner.tokenizer.encode(case.answer, add_special_tokens=False).ids
    return [*ids, runner.eos_token_ids[0]]


def _sequence(request: Request, answer: Ints) -> tuple[Request, Ints]:
    """A prompt with its answer, and the text positions that predict something known."""
    whole = continued(request, answer)
    return whole, np.flatnonzero(text_mask(whole))[:-1]


def _compare_with_trace(path: Path, runner: Runner, request: Request) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as trace:
        if not np.array_equal(trace["prompt"], request.prompt.ids):
            raise InputError("the bundle and the checkpoint make other token ids of the same prompt; "
                             "compare a bundle with the checkpoint that it was exported from")  # fmt: skip
        answer, reference = trace["answer"], trace["log_probabilities"]
    whole, positions = _sequence(request, answer)
    values = log_softmax(runner.logits(whole, positions))
    if values.shape != reference.shape:
        raise InputError(f"the bundle has a vocabulary of {values.shape[1]}, the checkpoint of {reference.shape[1]}; "
                         "compare a bundle with the checkpoint that it was exported from")  # fmt: skip
    kl, same = compare_with(reference, values)
    prompt = len(positions) - len(answer) + 1 if len(request.images) else 0  # positions of it, up to its last
    return {
        "losses": losses(values, answer),
        "answers": {"kl": kl[-len(answer) :], "top1": same[-len(answer) :]},
        "prompts": {"kl": kl[:prompt], "top1": same[:prompt]},
    }


def _answers(job: Assignment, runner: Runner) -> list[str]:
    texts = []
    for done, case in enumerate(job.cases):
        if done % 8 == 0:
            _progress("answers", done, len(job.cases))
        expected = runner.tokenizer.encode(case.answer or "", add_special_tokens=False).ids
        ids = runner.greedy(runner.prepare(case), case.new_tokens or len(expected) + SPARE_TOKENS)
        texts.append(runner.tokenizer.decode(ids, skip_special_tokens=True))
    return texts


def _progress(stage: str, done: int, total: int) -> None:
    print(json.dumps([stage, done, total]), file=sys.__stdout__, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run a job file; an error of lensmith goes into the result and gives its exit code."""
    end_with_parent()
    path = Path(arguments[0])
    result: dict[str, Any]
    try:
        with redirect_stdout(sys.stderr):  # what libraries print is no progress
            job = Assignment.read(path)
            if job.pinned:
                pin(job.threads)
            result, code = run(job), 0
    except LensmithError as error:
        result, code = {"error": str(error)}, error.exit_code
    write_json(path.with_name("result.json"), result)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
