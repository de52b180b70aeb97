"""From the rows of a benchmark to cases: prompts as the toolkits word them, answers, options and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ...targets.errors import InputError
from ..comparing.cases import Case
from .benchmark_tasks import LETTER, PHRASE, Benchmark, find_benchmark
from .task_pictures import as_list, other_row, save_pictures
from .task_tables import TABS, Row, read_rows


def read_benchmark(path: Path, folder: Path, name: str | None = None, limit: int | None = None) -> list[Case]:
    """The questions of a file, up to `limit` of each part; pictures that it holds are written into `folder`.

    `name` is the benchmark's, where neither the file's name nor its columns tell. The file is read twice: its pictures
    are many times what fits into the memory, and only those of the chosen questions are wanted.
    """
    chosen = list(_questions(path, name, limit))
    if not chosen:
        raise InputError(f"{path} has no questions; expected one a row")
    wanted = {key for key, _ in chosen}
    saved = dict(_pictures(path, folder, wanted))
    lost = sorted(wanted - saved.keys())
    if lost:
        raise InputError(
            f"{path} takes the picture of a row with the index {lost[0]}, and has none; copy the whole file"
        )
    return [replace(case, images=saved[key]) for key, case in chosen]


def _questions(path: Path, name: str | None, limit: int | None) -> Iterator[tuple[str, Case]]:
    """Each question without its pictures, and the key of the row that has these."""
    counts: Counter[str] = Counter()
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        return
    benchmark = find_benchmark(name, path, first[1].keys())
    if path.suffix.lower() == TABS:  # VLMEvalKit reads any answer there that looks like a list as one
        benchmark = replace(benchmark, lists=True)
    for where, row in chain((first,), rows):
        case = _case(where, row, benchmark)
        counts[case.task] += 1
        if limit is None or counts[case.task] <= limit:
            yield other_row(row) or _key(where, row), case
        elif benchmark.part is None:
            return


def _pictures(path: Path, folder: Path, wanted: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    beside, left = path if path.is_dir() else path.parent, set(wanted)
    for number, (where, row) in enumerate(read_rows(path)):
        key = _key(where, row)
        if key in left and other_row(row) is None:
            left.remove(key)
            yield key, save_pictures(where, row, beside, folder, f"task-{number}")
        if not left:
            return


def _key(where: str, row: Row) -> str:
    index = row.get("index")
    return where if index is None else str(index)


def _case(where: str, row: Row, benchmark: Benchmark) -> Case:
    if not isinstance(row.get("question"), str):
        raise InputError(f"{where} has no question; it has {', '.join(map(str, row))[:200]}")
    options = _options(row)
    if len(options) > len(ascii_uppercase):
        raise InputError(f"{where} has {len(options)} options; expected at most {len(ascii_uppercase)}, one a letter")
    answers = _answers(where, row, options, lists=benchmark.lists)
    part = row.get(benchmark.part) if benchmark.part else None
    return Case(
        f"{benchmark.name} {part}" if part else benchmark.name,
        (),
        _prompt(row, benchmark, options),
        Counter(answers).most_common(1)[0][0],
        given=True,
        metric="multiple choice" if options else benchmark.metric,
        answers=answers,
        options=options,
        new_tokens=benchmark.new_tokens,
    )


def _options(row: Row) -> tuple[str, ...]:
    """The options of a multiple choice: a list, or the columns A, B and so on of VLMEvalKit."""
    listed = [option for name in ("options", "choices") for option in as_list(row.get(name))]
    lettered = takewhile(lambda option: option is not None, (row.get(letter) for letter in ascii_uppercase))
    return tuple(map(str, listed or lettered))


def _answers(where: str, row: Row, options: tuple[str, ...], *, lists: bool) -> tuple[str, ...]:
    """The right answers; a text like "[2, 3]" is one of them, or with `lists` two, as its toolkit has it."""
    several, one = (_values(row.get(name), lists=lists) for name in ("answers", "answer"))
    found = [each.get("answer") if isinstance(each, dict) else each for each in several]
    texts = [str(value) for value in found or one if value is not None]
    if not texts:
        raise InputError(
            f"{where} has no answer; take a split whose answers are public, such as the one for validation"
        )
    return tuple(_letter(where, text, options) for text in texts) if options else tuple(texts)


def _values(value: Any, *, lists: bool) -> list[Any]:
    return [value] if isinstance(value, str) and not lists else as_list(value)


def _letter(where: str, answer: str, options: tuple[str, ...]) -> str:
    """The letter of a right option: lmms-eval's AI2D has its index, counted from 0."""
    letters: Sequence[str] = [*ascii_uppercase[: len(options)]]
    if answer in letters:
        return answer
    if answer.isdigit() and int(answer) < len(options):
        return letters[int(answer)]
    if answer in options:
        return letters[options.index(answer)]
    raise InputError(f"the answer of {where} is {answer[:80]!r}; expected one of its {len(options)} options")


def _prompt(row: Row, benchmark: Benchmark, options: tuple[str, ...]) -> str:
    question = row["question"]
    if not options:
        return f"{question}{benchmark.gap}{PHRASE}"
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    if row.get("A") is None:  # lmms-eval's wording
        return f"{question}\n{listed}{benchmark.gap}{LETTER}"
    hint = f"Hint: {row['hint']}\n" if row.get("hint") else ""
    return (
        f"{hint}Question: {question}\nOptions:\n{listed}\nPlease select the correct answer from the options above. \n"
    )
