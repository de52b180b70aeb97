"""Many questions in a file, each answered in a line of another: what an interruption leaves is gone on with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from ..prompt.requests import question_message
from ..storage.reading import read_utf8
from .model import Model
from .options import GenerationOptions

MOST_BYTES = 1 << 30  # of a file of tasks
QUESTION = ("prompt", "question")  # names of a text alone
ASKING = ("messages", *QUESTION, "images", "videos", "options")
MADE = ("line", "digest", "text", "error", "finish_reason", "prompt_tokens", "new_tokens")
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Line:
    """One line of a file of tasks."""

    number: int
    text: str
    digest: str  # of all that its answer depends on, the bundle among it

    @property
    def place(self) -> dict[str, Any]:
        """What tells the line of an answer."""
        return {"line": self.number, "digest": self.digest}


@dataclass(frozen=True)
class BatchCounts:
    """How many lines were answered now, were answered before, and cannot be answered."""

    answered: int
    kept: int
    failed: int


def answer_file(
    model: Model,
    tasks: Path,
    out: Path,
    options: GenerationOptions | None = None,
    *,
    told: Told = lambda *_: None,
    **chosen: Any,
) -> BatchCounts:
    """Answers each line of `tasks`, in a line of `out` in the same order.

    A line is an object with `messages`, or with a `prompt` and the paths of `images` and `videos`, which count from the
    folder of the file. It may have `options` of its own, which count over those of all; other keys are carried along.
    An answer has `text`, `finish_reason` and the numbers of tokens; a line that cannot be answered has an `error`, and
    the others are answered. Lines whose answers `out` has already are left alone, errors are tried again. Raises
    InputError for files that cannot be read, and for an `out` of other tasks, options or another bundle.
    """
    lines = list(_lines(tasks, _asked(model, options, chosen)))
    rows = _known(out, {line.number: line for line in lines})
    kept = len(rows)
    left = sorted((line for line in lines if line.number not in rows), key=lambda line: _images(line.text))
    out.parent.mkdir(parents=True, exist_ok=True)
    _rewrite(out, rows)
    with open(out, "a", encoding="utf-8") as file:
        for done, line in enumerate(left, start=1):
            rows[line.number] = _answered(model, line, tasks.parent, options, chosen)
            file.write(_row(rows[line.number]))
            file.flush()
            told(kept + done, len(lines))
    _rewrite(out, rows)
    failed = sum("error" in row for row in rows.values())
    return BatchCounts(len(left) - failed, kept, failed)


def _answered(
    model: Model, line: Line, folder: Path, options: GenerationOptions | None, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        task = json.loads(line.text)
        if not isinstance(task, dict):
            raise InputError(f"it is a {type(task).__name__}; expected an object")
        carried = {name: value for name, value in task.items() if name not in (*ASKING, *MADE)}
        answer = model.generate(_messages(task, folder), options, **{**chosen, **task.get("options", {})})
        text = answer.read()
    except (InputError, ValueError, TypeError, RecursionError) as error:
        return {**line.place, "error": str(error)}
    timings = answer.timings
    made = {"finish_reason": answer.finish_reason, "prompt_tokens": timings.prompt_tokens}
    return {**carried, **line.place, "text": text, **made, "new_tokens": timings.new_tokens}


def _messages(task: Mapping[str, Any], folder: Path) -> Any:
    text = next((task[name] for name in QUESTION if name in task), None)
    if ("messages" in task) == (text is not None):
        raise InputError("it has both messages and a prompt, or neither; expected one of them")
    if "messages" in task:
        return task["messages"]
    media = [[_path(source, folder) for source in task.get(kind, ())] for kind in ("images", "videos")]
    return [question_message(text, *media)]


def _path(source: Any, folder: Path) -> Any:
    """A source beside the file of tasks, unless it is a URL."""
    return source if not isinstance(source, str) or source.startswith(("data:", "file:")) else str(folder / source)


def _asked(model: Model, options: GenerationOptions | None, chosen: Mapping[str, Any]) -> str:
    """What all answers depend on."""
    files = {name: entry.get("sha256") for name, entry in model.bundle.content["files"].items()}
    return json.dumps([files, repr(options), sorted((name, repr(value)) for name, value in chosen.items())])


def _lines(path: Path, asked: str) -> Iterator[Line]:
    for number, text in enumerate(
        read_utf8(path, MOST_BYTES, "a file of tasks, one JSON object a line").split("\n"), 1
    ):
        if text.strip():
            yield Line(number, text, hashlib.sha256(f"{asked}\n{text}".encode()).hexdigest()[:16])


def _images(text: str) -> str:
    """Lines with the same images lie beside each other, so that these are encoded once."""
    try:
        task = json.loads(text)
        return json.dumps(task.get("images", ""))
    except (ValueError, AttributeError, RecursionError):
        return ""


def _known(out: Path, lines: Mapping[int, Line]) -> dict[int, dict[str, Any]]:
    """The answers that are there; the last line may be half written."""
    rows: dict[int, dict[str, Any]] = {}
    if not out.exists():
        return rows
    texts = read_utf8(out, MOST_BYTES, "the answers of an earlier run, or a new file").split("\n")
    for text in texts:
        try:
            row = json.loads(text)
            line = lines.get(row["line"])
            same = line is not None and line.digest == row["digest"]
        except (ValueError, TypeError, KeyError):
            if text in ("", texts[-1]):
                continue
            raise _others(out) from None
        if not same:
            raise _others(out)
        if "error" not in row:
            rows[row["line"]] = row
    return rows


def _others(out: Path) -> InputError:
    return InputError(f"{out} has lines that are no answers to these tasks by this bundle with these options; move it "
                      "away, or name another file")  # fmt: skip


def _rewrite(out: Path, rows: Mapping[int, dict[str, Any]]) -> None:
    """All rows in the order of their tasks, in place of what is there; at no time is there less on the disk."""
    beside = out.with_name(f".{out.name}.new")
    beside.write_text("".join(_row(rows[number]) for number in sorted(rows)), encoding="utf-8")
    os.replace(beside, out)


def _row(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
