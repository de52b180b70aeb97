"""Answers that a model gives itself to samples without one, at 8 bits, through lensmith's own runtime.

Calibration then sees what the model computes while it answers, and is judged there, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...exporters.comparing.cases import Case
from ...exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from ...exporters.progress import Steps
from ...runtimes.bundle.opening import Bundle, open_bundle
from ...runtimes.engines.contract import Ints
from ...runtimes.generation.model import Model
from .calibration_samples import case_key

PRECISION = "int8"
TARGET = "cpu-any"  # whose activations are never rounded as a whole


@dataclass(frozen=True)
class Wording:
    """How a model answers: `tokens` at most (0: not at all), greedily at temperature 0, else sampled from a seed."""

    tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of an answer by name."""
        return {"temperature": self.temperature, "seed": self.seed} if self.temperature else {}

    def __str__(self) -> str:
        how = f"at temperature {self.temperature:g}" if self.temperature else "greedily"
        return f"the model at 8 bits, {how}, {self.tokens} tokens at most"


class AnswerJournal:
    """Token ids of answers by the keys of their cases, one line of JSON each: what is there is not asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: dict[str, Ints] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that an interruption cut off
                row = json.loads(line)
                self.ids[row["case"]] = np.array(row["ids"], np.int64)

    def record(self, key: str, ids: Sequence[int]) -> None:
        """Note one answer."""
        self.ids[key] = np.array(ids, np.int64)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"case": key, "ids": [*ids]}))  # "\n" ends a line cut off


def own_answers(
    job: Job,
    cases: Sequence[Case],
    wording: Wording,
    scratch: Path,
    *,
    context: int,
    threads: int | None = None,
    progress: Steps = lambda *_: None,
) -> Mapping[str, Ints]:
    """The model's answers to cases without one, by `case_key`: token ids, with an end token where it came to one.

    `context` holds the longest prompt and its answer. A bundle of 8 bits lies in the scratch folder meanwhile; answers
    of an interrupted run are kept there.
    """
    name = _digest(job, wording)
    journal = AnswerJournal(scratch / f"answers-{name}.jsonl")
    keys = {case_key(case): case for case in cases if case.answer is None}
    left = [key for key in sorted(keys, key=lambda key: (keys[key].images, key)) if key not in journal.ids]
    if left and wording.tokens:
        bundle = _at_8_bits(job, scratch / f"speaker-{name}")
        speaker = Model(bundle, context=context, threads=threads, conversations=1, prefix_bytes=0)
        for done, key in enumerate(left, start=1):
            journal.record(key, _answer(speaker, keys[key], wording))
            progress(done, len(left))
        del speaker  # which has files of the bundle open
        shutil.rmtree(bundle.path, ignore_errors=True)
    return journal.ids


def _at_8_bits(job: Job, out: Path) -> Bundle:
    """The bundle of a job at 8 bits; one that an interrupted run has finished is opened."""
    if (out / "lensmith.json").is_file():
        return open_bundle(out)
    checkpoint, asked = job.checkpoint, job.options
    options = Options(precision=PRECISION, target=TARGET, context=asked.context, max_pixels=asked.max_pixels)
    speaking = prepare(checkpoint.path, options, adapter=checkpoint.adapter)
    return export(replace(speaking, checkpoint=checkpoint), out, golden="never")


def _answer(speaker: Model, case: Case, wording: Wording) -> list[int]:
    """Token ids of one answer; what the model goes on with freely is sampled, since it would soon repeat itself."""
    sampling = {"temperature": 1.0, "seed": wording.seed + case.free} if case.free else wording.sampling
    answer = speaker.generate(case.messages, max_new_tokens=wording.tokens, **sampling, **case.variables)
    for _ in answer:
        pass
    return answer.ids


def _digest(job: Job, wording: Wording) -> str:
    """A hash of all that answers depend on besides the questions."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in job.checkpoint.files]
    limits = [job.options.context, job.options.max_pixels]
    text = json.dumps([stats, job.checkpoint.config, limits, vars(wording)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
