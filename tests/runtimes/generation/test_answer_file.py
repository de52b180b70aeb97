"""Files of questions: the answers are those of the model, and interruptions lose none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes import InputError, Model, load
from lensmith.runtimes.generation.answer_file import answer_file

from tests.paths import TINY

IMAGES = TINY / "heldout" / "images"


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    found = load(tiny_bundle, context=1024)
    assert isinstance(found, Model)
    return found


TASKS: list[Any] = [
    {"id": "a", "prompt": "What is this?", "images": ["a.png"]},
    {"question": "And this?", "images": ["b.png"], "answer": "lion"},
    {"prompt": "Broken", "images": ["none.png"]},
    {"messages": [{"role": "user", "content": "Hello ✓"}], "options": {"max_new_tokens": 3}},
    {"prompt": "Again?", "images": ["a.png"]},
    "no object",
    {"prompt": "Both", "messages": []},
    {"prompt": "Wrong", "options": {"temprature": 2}},
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name, source in (("a.png", "0001.png"), ("b.png", "0002.png")):
        shutil.copy(IMAGES / source, tmp_path / name)
    path = tmp_path / "tasks.jsonl"
    lines = [json.dumps(task, ensure_ascii=False) for task in TASKS]
    path.write_text("\n".join([*lines[:4], "", *lines[4:], "{"]), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_and_errors_in_their_order(model: Model, tasks: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "answers.jsonl", list[tuple[int, int]]()
    counts = answer_file(model, tasks, out, told=lambda *at: told.append(at), max_new_tokens=5)
    rows = rows_of(out)
    assert (counts.answered, counts.kept, counts.failed) == (4, 0, 5)
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert told[-1] == (9, 9)
    wanted = model.ask("What is this?", [tasks.parent / "a.png"], max_new_tokens=5)
    assert rows[0]["text"] == wanted.read()
    assert (rows[0]["id"], rows[0]["new_tokens"], rows[0]["finish_reason"]) == ("a", 5, "length")
    assert rows[0]["prompt_tokens"] == wanted.timings.prompt_tokens
    assert rows[1]["answer"] == "lion"
    assert rows[3]["text"] == model.generate("Hello ✓", max_new_tokens=3).read()
    errors = {row["line"]: row["error"] for row in rows if "error" in row}
    for line, words in {3: "none.png", 7: "expected an object", 8: "expected one", 9: "temprature", 10: "{"}.items():
        assert words in errors[line] or line == 10


def test_an_interrupted_run_goes_on(model: Model, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    answer_file(model, tasks, whole, max_new_tokens=5)
    stopped = RuntimeError("power cut")
    asked = list[Any]()
    generate = model.generate

    def cut(*given: Any, **chosen: Any) -> Any:
        if len(asked) == 3:
            raise stopped
        asked.append(given)
        return generate(*given, **chosen)

    monkeypatch.setattr(model, "generate", cut)
    with pytest.raises(RuntimeError):
        answer_file(model, tasks, out, max_new_tokens=5)
    with open(out, "a", encoding="utf-8") as file:
        file.write('{"line": 4, "dig')  # what was being written
    answered = sum('"text"' in line for line in out.read_text(encoding="utf-8").splitlines())
    asked.clear()
    monkeypatch.setattr(model, "generate", generate)
    counts = answer_file(model, tasks, out, max_new_tokens=5)
    assert counts.kept == answered > 0
    assert out.read_bytes() == whole.read_bytes()
    again = answer_file(model, tasks, out, max_new_tokens=5)
    assert (again.answered, again.kept, again.failed) == (0, 4, 5)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("case", ["options", "tasks", "strange"])
def test_answers_to_something_else_are_not_mixed(model: Model, tasks: Path, tmp_path: Path, case: str) -> None:
    out = tmp_path / "answers.jsonl"
    answer_file(model, tasks, out, max_new_tokens=2)
    if case == "tasks":
        tasks.write_text(tasks.read_text(encoding="utf-8").replace("What", "Who"), encoding="utf-8")
    if case == "strange":
        out.write_text("my shopping list\nmilk\n", encoding="utf-8")
    before = out.read_bytes()
    with pytest.raises(InputError, match="are no answers to these tasks"):
        answer_file(model, tasks, out, max_new_tokens=3 if case == "options" else 2)
    assert out.read_bytes() == before


def test_equal_images_are_encoded_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.forget()
    lines = [{"prompt": f"Question {i}?", "images": [str(IMAGES / f"000{1 + i % 3}.png")]} for i in range(9)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    encoded = list[Any]()
    vision = model.media.vision

    def counted(*given: Any) -> Any:
        encoded.append(given)
        return vision(*given)

    monkeypatch.setattr(model.media, "vision", counted)
    answer_file(model, tmp_path / "tasks.jsonl", tmp_path / "out.jsonl", max_new_tokens=2)
    assert len(encoded) == 3


def test_the_command(cli: Any, tiny_bundle: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    ran = cli("batch", tiny_bundle, tasks, "-o", out, "--max-new-tokens", 3, "--context", 1024, "--json")
    assert (ran.code, json.loads(ran.out)) == (1, {"out": str(out), "answered": 4, "kept": 0, "failed": 5})
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(TASKS[0]), encoding="utf-8")
    assert cli("batch", tiny_bundle, good, "-o", tmp_path / "b.jsonl", "--max-new-tokens", 3).code == 0
    assert cli("batch", tiny_bundle, tmp_path / "none", "-o", out).code == 2
