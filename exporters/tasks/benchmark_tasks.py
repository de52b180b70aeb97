"""Known benchmarks: how their files are called, how answers are asked for, and by which metric they count."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ...targets.errors import InputError, closest

PHRASE = "Answer the question using a single word or phrase."  # behind a question, in both toolkits
LETTER = "Answer with the option's letter from the given choices directly."  # behind options, in lmms-eval


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as lmms-eval and VLMEvalKit ask it."""

    name: str
    called: str  # a pattern of the names of its files and folders
    metric: str  # of questions without options; those with options are multiple choice
    columns: frozenset[str]  # that no other benchmark has all of, for files of other names
    new_tokens: int  # most of an answer
    gap: str = "\n"  # between a question and how to answer it
    part: str | None = None  # the column that says which part of the benchmark a question belongs to
    lists: bool = False  # several answers stand in one text as Python writes a list, not in tables by tabs alone


BENCHMARKS = {
    row.name: row
    for row in (
        Benchmark("DocVQA", "docvqa", "ANLS", frozenset({"questionId", "answers"}), 128),
        Benchmark("InfoVQA", "info(graphic)?vqa", "ANLS", frozenset({"answers", "operation/reasoning"}), 128),
        Benchmark("ChartQA", "chartqa", "relaxed accuracy", frozenset({"type", "question", "answer"}), 16, part="type"),
        Benchmark("AI2D", "ai2d", "multiple choice", frozenset({"options", "answer", "image"}), 16),
        Benchmark("MMMU", "mmmu", "open answer", frozenset({"image_1", "question_type"}), 16, "\n\n", lists=True),
        Benchmark("VQAv2", "vqav?2", "VQA score", frozenset({"multiple_choice_answer", "answers"}), 16),
        Benchmark("TextVQA", "textvqa", "VQA score", frozenset({"ocr_tokens", "answers"}), 16),
        Benchmark("GQA", "gqa", "accuracy", frozenset({"fullAnswer", "answer"}), 16),
    )
}


def find_benchmark(name: str | None, path: Path, columns: Collection[str]) -> Benchmark:
    """The benchmark of a file: the named one, else by the names of the file and its folders, else by its columns."""
    if name is not None:
        known = {each.lower(): row for each, row in BENCHMARKS.items()}
        if name.lower() not in known:
            raise InputError(f"there is no benchmark {name!r}; {closest(name, BENCHMARKS)}")
        return known[name.lower()]
    for part in (path.stem, *(folder.name for folder in [path.resolve(), *path.resolve().parents][:4])):
        found = [row for row in BENCHMARKS.values() if re.search(rf"(?<![a-z]){row.called}(?![a-z])", part.lower())]
        if found:
            return found[0]
    fitting = [row for row in BENCHMARKS.values() if row.columns <= set(columns)]
    if len(fitting) != 1:
        raise InputError(
            f"neither the name nor the columns of {path} say which benchmark it is; "
            f"add --benchmark with one of {', '.join(BENCHMARKS)}"
        )
    return fitting[0]
