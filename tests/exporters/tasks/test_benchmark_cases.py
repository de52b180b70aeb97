"""Benchmarks in the files of lmms-eval and VLMEvalKit: small ones of the same columns, with pictures in them."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.comparing.cases import Case
from lensmith.exporters.tasks.answer_metrics import Expected, score
from lensmith.exporters.tasks.benchmark_cases import read_benchmark
from lensmith.exporters.tasks.benchmark_tasks import BENCHMARKS, find_benchmark
from lensmith.exporters.tasks.question_files import read_questions
from lensmith.targets.errors import InputError, MissingExtra
from PIL import Image

PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def picture(level: int, kind: str = "PNG") -> bytes:
    """One that is told from others by its grey."""
    out = io.BytesIO()
    Image.new("L", (8, 8), level).save(out, kind)
    return out.getvalue()


def levels(case: Case) -> list[Any]:
    return [Image.open(path).getpixel((0, 0)) for path in case.images]


def image(level: int) -> dict[str, Any]:
    """As the library datasets writes its feature Image."""
    return {"bytes": picture(level), "path": f"{level}.png"}


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(arrow.Table.from_pylist(rows), path)
    return path


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As pandas writes tables for VLMEvalKit."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], dialect="excel-tab", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def base(level: int) -> str:
    return base64.b64encode(picture(level, "JPEG")).decode()


def docvqa(count: int) -> list[dict[str, Any]]:
    """lmms-lab/DocVQA."""
    return [
        {"questionId": f"{index}", "question": f"What is {index}?", "question_types": ["layout"], "image": image(index),
         "docId": 7, "ucsf_document_id": "x", "ucsf_document_page_no": "1", "answers": [f"{index}", f"no. {index}"],
         "data_split": "val"}
        for index in range(count)
    ]  # fmt: skip


def test_docvqa_of_lmms_eval(tmp_path: Path) -> None:
    path = parquet(tmp_path / "DocVQA" / "validation-00000-of-00006.parquet", docvqa(40))
    cases = read_questions(path, tmp_path, limit=33)
    assert len(cases) == 33
    assert [levels(case) for case in cases] == [[index] for index in range(33)]
    last = cases[-1]
    assert (last.task, last.prompt, last.metric) == ("DocVQA", f"What is 32?\n{PHRASE}", "ANLS")
    assert (last.answer, last.answers, last.new_tokens, last.given) == ("32", ("32", "no. 32"), 128, True)


def test_chartqa_of_lmms_eval_by_part(tmp_path: Path) -> None:
    rows = [{"type": kind, "question": "How many?", "answer": "14", "image": image(place)}
            for place, kind in enumerate(("human_test", "human_test", "augmented_test"))]  # fmt: skip
    cases = read_questions(parquet(tmp_path / "test.parquet", rows), tmp_path, limit=1)
    assert [(case.task, levels(case)) for case in cases] == [
        ("ChartQA human_test", [0]),
        ("ChartQA augmented_test", [2]),
    ]
    assert {case.metric for case in cases} == {"relaxed accuracy"}


def test_answers_that_look_like_lists_are_what_the_toolkit_makes_of_them(tmp_path: Path) -> None:
    """lmms-eval compares ChartQA's text as it stands; VLMEvalKit takes such a cell of a table for a list of answers."""
    row = {"type": "human_test", "question": "Which two?", "answer": "[2, 3]"}
    (whole,) = read_questions(parquet(tmp_path / "test.parquet", [{**row, "image": image(1)}]), tmp_path)
    assert whole.answers == ("[2, 3]",)
    expected = Expected(whole.answers)
    assert [score(whole.metric, answer, expected) for answer in ("[2, 3]", "2", "3")] == [1, 0, 0]
    cells = {"index": 0, "question": "Which two?", "answer": "[2, 3]", "image": base(1)}
    (either,) = read_questions(table(tmp_path / "ChartQA_TEST.tsv", [cells]), tmp_path)
    assert either.answers == ("2", "3")
    lines = tmp_path / "mine.jsonl"
    (tmp_path / "a.png").write_bytes(picture(1))
    lines.write_text(json.dumps({"question": "?", "answers": ["[2, 3]", "[3, 2]"], "image": "a.png"}))
    (listed,) = read_questions(lines, tmp_path, "ChartQA")
    assert listed.answers == ("[2, 3]", "[3, 2]")


def test_ai2d_of_lmms_eval(tmp_path: Path) -> None:
    """Its answer is the index of an option, also where options are numbers."""
    rows = [{"question": "Which is it?", "options": ["1", "2", "3", "4"], "answer": "2", "image": image(5)}]
    (case,) = read_questions(parquet(tmp_path / "test.parquet", rows), tmp_path)
    assert case.prompt == f"Which is it?\nA. 1\nB. 2\nC. 3\nD. 4\n{LETTER}"
    assert (case.task, case.answer, case.options, case.metric) == ("AI2D", "C", ("1", "2", "3", "4"), "multiple choice")


def mmmu(**changes: Any) -> dict[str, Any]:
    """lmms-lab/MMMU: options and several answers are Python's writing of a list."""
    pictures = {f"image_{number}": image(number) if number < 3 else None for number in range(1, 8)}
    return {
        "id": "validation_Art_1",
        "question": "What is <image 1> next to <image 2>?",
        "options": "['a $1 fee', \"it's\"]",
        "explanation": "",
        **pictures,
        "img_type": "['Paintings']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Art",
        **changes,
    }


def test_mmmu_of_lmms_eval(tmp_path: Path) -> None:
    rows = [mmmu(), mmmu(options="[]", answer="['3', 'three']", question_type="open")]
    chosen, free = read_questions(parquet(tmp_path / "validation.parquet", rows), tmp_path)
    assert chosen.prompt == f"What is <image 1> next to <image 2>?\nA. a $1 fee\nB. it's\n\n{LETTER}"
    assert (chosen.answer, chosen.metric, levels(chosen)) == ("B", "multiple choice", [1, 2])
    assert (free.prompt, free.metric) == (f"What is <image 1> next to <image 2>?\n\n{PHRASE}", "open answer")
    assert (free.answers, free.options, free.task) == (("3", "three"), (), "MMMU")


def test_vqav2_of_lmms_eval(tmp_path: Path) -> None:
    said = ["no", *["yes"] * 6, *["no"] * 3]
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": place} for place, text in enumerate(said)]
    rows = [
        {
            "question_type": "is",
            "multiple_choice_answer": "yes",
            "answers": answers,
            "image_id": 1,
            "answer_type": "yes/no",
            "question_id": 9,
            "question": "Is it?",
            "image": image(4),
        }
    ]
    (case,) = read_questions(parquet(tmp_path / "validation.parquet", rows), tmp_path)
    assert (case.task, case.answer, case.answers, case.metric) == ("VQAv2", "yes", tuple(said), "VQA score")
    assert case.prompt == f"Is it?\n{PHRASE}"


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path: Path) -> None:
    for part in range(2):
        parquet(tmp_path / "data" / f"validation-0000{part}-of-00002.parquet", docvqa(5)[2 * part : 2 * part + 2])
    cases = read_questions(tmp_path / "data", tmp_path)
    assert [(case.answer, levels(case)) for case in cases] == [(str(index), [index]) for index in range(4)]


def test_docvqa_of_vlmevalkit_shares_pictures(tmp_path: Path) -> None:
    """A short "image" is the index of the row that has it, before or behind."""
    rows = [
        {"index": 10, "image": 12, "question": 'a "quoted"\nquestion', "answer": "['x', 'y']"},
        {"index": 11, "image": base(60), "question": "b", "answer": "['z']"},
        {"index": 12, "image": base(200), "question": "c", "answer": "plain"},
        {"index": 13, "image": 11, "question": "d", "answer": "['z']"},
    ]
    cases = read_questions(table(tmp_path / "DocVQA_VAL.tsv", rows), tmp_path)
    assert [levels(case)[0] for case in cases] == pytest.approx([200, 60, 200, 60], abs=2)
    assert [case.answers for case in cases] == [("x", "y"), ("z",), ("plain",), ("z",)]
    assert cases[0].prompt == f'a "quoted"\nquestion\n{PHRASE}'
    assert {case.metric for case in cases} == {"ANLS"}
    (first,) = read_questions(tmp_path / "DocVQA_VAL.tsv", tmp_path, limit=1)
    assert levels(first) == pytest.approx([200], abs=2)


def test_options_of_vlmevalkit(tmp_path: Path) -> None:
    rows = [
        {
            "index": 0,
            "image": base(9),
            "question": "Which?",
            "hint": "Look.",
            "A": "one",
            "B": "two",
            "C": "",
            "answer": "B",
        },
        {"index": 1, "image": base(9), "question": "Which?", "hint": "", "A": "x", "B": "y", "C": "z", "answer": "C"},
    ]
    first, second = read_questions(table(tmp_path / "AI2D_TEST.tsv", rows), tmp_path)
    assert first.prompt == ("Hint: Look.\nQuestion: Which?\nOptions:\nA. one\nB. two\n"
                            "Please select the correct answer from the options above. \n")  # fmt: skip
    assert (first.options, first.answer, first.task) == (("one", "two"), "B", "AI2D")
    assert second.prompt.startswith("Question: Which?\nOptions:\nA. x\n")


def test_several_pictures_of_vlmevalkit(tmp_path: Path) -> None:
    rows = [
        {
            "index": 3,
            "image": str([base(30), base(90)]),
            "image_path": "['3_1.jpg', '3_2.jpg']",
            "question": "<image 1>?",
            "A": "x",
            "B": "y",
            "answer": "A",
            "split": "validation",
        }
    ]
    (case,) = read_questions(table(tmp_path / "MMMU_DEV_VAL.tsv", rows), tmp_path)
    assert levels(case) == pytest.approx([30, 90], abs=2)


def test_json_lines_with_pictures_beside_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(70))
    rows = [{"question": "How much?", "answer": "5", "image": "images/a.png"},
            {"question": "How much?", "answer": "6", "image": f"data:image/jpeg;base64,{base(33)}"}]  # fmt: skip
    path = tmp_path / "chartqa.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    cases = read_questions(path, tmp_path)
    assert [levels(case)[0] for case in cases] == pytest.approx([70, 33], abs=2)
    assert cases[0].images == (str(tmp_path / "images" / "a.png"),)
    (tmp_path / "some.jsonl").write_bytes(path.read_bytes())
    assert {case.metric for case in read_questions(tmp_path / "some.jsonl", tmp_path, "gqa")} == {"accuracy"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("DocVQA_VAL.tsv", "DocVQA"),
        ("InfoVQA_VAL.tsv", "InfoVQA"),
        ("infographicvqa.jsonl", "InfoVQA"),
        ("vqav2-val.jsonl", "VQAv2"),
        ("TextVQA_VAL.tsv", "TextVQA"),
        ("AI2D_TEST_NO_MASK.tsv", "AI2D"),
        ("chartqa/data/test-0.parquet", "ChartQA"),
        ("GQA_TestDev_Balanced.tsv", "GQA"),
        ("MMMU_DEV_VAL.tsv", "MMMU"),
    ],
)
def test_names_of_files_tell_the_benchmark(name: str, found: str) -> None:
    assert find_benchmark(None, Path("/sets") / name, {"question", "answer"}).name == found


def test_each_benchmark_can_be_named() -> None:
    for name, row in BENCHMARKS.items():
        assert find_benchmark(name.lower(), Path("x.tsv"), set()) is row


LINES: list[tuple[str, Any, str]] = [
    (
        "docvqa.tsv",
        [{"index": 0, "image": 5, "question": "a", "answer": "b"}],
        "index 5, and has none; copy the whole file",
    ),
    ("docvqa.jsonl", [{"question": "a", "answer": None}], "row 1 of docvqa.jsonl has no answer; take a split"),
    ("docvqa.jsonl", [{"questions": "a", "question": 5}], "row 1 of docvqa.jsonl has no question; it has questions"),
    (
        "docvqa.jsonl",
        [{"question": "a", "answer": "b", "image": "no.png"}],
        "names a picture that is not there: .*no.png",
    ),
    ("ai2d.jsonl", [{"question": "a", "options": ["x"], "answer": "y"}], "is 'y'; expected one of its 1 options"),
    ("ai2d.jsonl", [{"question": "a", "options": ["x"], "answer": "1"}], "is '1'; expected one of its 1 options"),
    (
        "some.jsonl",
        [{"question": "a", "answer": "b"}],
        "neither the name nor the columns of .*; add --benchmark with one of",
    ),
]


@pytest.mark.parametrize(("name", "rows", "message"), LINES)
def test_unusable_questions_are_told(name: str, rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    path = tmp_path / "sets" / name
    path.parent.mkdir()
    if path.suffix == ".tsv":
        table(path, rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=message):
        read_questions(path, tmp_path)


def files(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "docvqa.parquet", "is not a parquet file"
    yield folder / "docvqa.tsv", "is not a table separated by tabs"
    yield folder / "docvqa.jsonl", "line 1 of .*is not JSON"
    yield folder, "is not a parquet file"


def test_broken_files_are_told(tmp_path: Path) -> None:
    for path, message in files(tmp_path):
        if path != tmp_path:
            path.write_bytes(b"\xff\xfe{question")
        if path.suffix in (".parquet", ""):
            pytest.importorskip("pyarrow")
        with pytest.raises(InputError, match=message):
            read_benchmark(path, tmp_path, "docvqa")
    for path, message in ((tmp_path / "no.tsv", "is no file"), (tmp_path / "empty", "has no .parquet files")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            read_questions(path, tmp_path)


def test_empty_files_and_other_names_are_told(tmp_path: Path) -> None:
    path = tmp_path / "docvqa.tsv"
    path.write_text("index\tquestion\n")
    with pytest.raises(InputError, match="has no questions"):
        read_questions(path, tmp_path)
    with pytest.raises(InputError, match="no benchmark 'DocVQS'; did you mean 'DocVQA'"):
        find_benchmark("DocVQS", path, set())
    own = tmp_path / "own.jsonl"
    own.write_text('{"task": "a", "images": [], "prompt": "p", "answer": "a"}')
    assert [case.metric for case in read_questions(own, tmp_path)] == ["exact match"]
    with pytest.raises(InputError, match="leave out --benchmark"):
        read_questions(own, tmp_path, "DocVQA")


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docvqa.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"lensmith\[tasks\]"):
        read_questions(tmp_path / "docvqa.parquet", tmp_path)


def test_a_table_of_windows_without_indices(tmp_path: Path) -> None:
    """A mark in front of the first column is none of its name, and rows without an index have their own pictures."""
    rows = [{"question": f"What is {number}?", "index": "", "answer": "14", "image": base(level)}
            for number, level in enumerate((40, 80))]  # fmt: skip
    path = table(tmp_path / "ChartQA.tsv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [levels(case) for case in read_questions(path, tmp_path)] == [[40], [80]]


def test_more_options_than_letters_are_refused(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": list(map(str, range(27))), "answer": "1", "image_path": "a.png"}
    (tmp_path / "ai2d.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"row 1 of ai2d.jsonl has 27 options; expected at most 26"):
        read_questions(tmp_path / "ai2d.jsonl", tmp_path)
