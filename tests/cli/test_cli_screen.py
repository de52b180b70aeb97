"""What the commands share: units for people, sizes as people write them, JSON, and what printed results say."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from lensmith.cli import long_work
from lensmith.cli.calibration_tables import print_calibration
from lensmith.cli.export import _proof
from lensmith.cli.inspect import _flat, _precision
from lensmith.cli.long_work import needs
from lensmith.cli.option_types import AboveZero, parse_size
from lensmith.cli.screen import cell, console, count, finite, print_json, size
from lensmith.cli.storage_tables import component_sizes
from lensmith.exporters.formats.lowering import find_lowering
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.targets.errors import (
    CheckFailed,
    InputError,
    LensmithError,
    MissingExtra,
    closest,
)

from tests.helpers.contents import content


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (99_990, "99.99 kB"), (100_000, "100 kB"), (999_499, "999 kB"),
     (1_000_000, "1.00 MB"), (1_310_000_000, "1.31 GB"), (123_400_000_000, "123 GB")],
)  # fmt: skip
def test_bytes_for_people(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (999_999, "999,999"), (1_000_000, "1.00 M"), (2_127_532_032, "2.13 B")]
)
def test_parameters_for_people(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1.2GB", 1_200_000_000),
        ("900 MB", 900_000_000),
        ("5k", 5000),
        (" 7 ", 7),
        ("1.5mb", 1_500_000),
        ("2G", 2 * 10**9),
    ],
)
def test_sizes_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_size(None, None, text) == nbytes  # type: ignore[arg-type]
    assert parse_size(None, None, None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "1GiB", "-1", "1e3", "GB", "1.GB", "1 000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        parse_size(None, click.Option(["--budget"]), text)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "4.5", "x"])
def test_numbers_above_zero(value: str) -> None:
    kind = AboveZero(4)
    assert [kind.convert(each, None, None) for each in ("0.001", "4")] == [0.001, 4]
    with pytest.raises(click.BadParameter):
        kind.convert(value, None, None)


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"a": float("nan"), "b": [float("inf"), 1.5, (2,)], "c": {"d": -float("inf")}, "e": "ä", "f": None}
    assert finite(data) == {"a": None, "b": [None, 1.5, [2]], "c": {"d": None}, "e": "ä", "f": None}
    print_json(data)
    printed = capsys.readouterr().out
    assert json.loads(printed) == finite(data)
    assert "ä" in printed


def test_letters_are_escaped_where_the_output_lacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    print_json({"a": "ä"})
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode("ascii")) == {"a": "ä"}


def test_names_are_no_markup() -> None:
    assert cell("[bold]x[/bold]") == r"\[bold]x\[/bold]"


def test_a_package_that_is_missing_names_its_extra() -> None:
    with (
        pytest.raises(MissingExtra, match=r"a thing \(no module 'torch.nn'\) .* 'lensmith\[torch\]'"),
        needs("torch", "a thing"),
    ):
        raise ImportError("no", name="torch.nn")
    for name in ("lensmith.exporters.none", None):  # of our own: a defect
        with pytest.raises(ImportError, match="no") as raised, needs("torch", "a thing"):
            raise ImportError("no", name=name)
        assert not isinstance(raised.value, LensmithError)
    with contextlib.suppress(KeyError), needs("torch", "a thing"):
        raise KeyError


def test_long_work_that_nobody_watches_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 300, 20))  # seconds: each call of the clock is 20 later
    monkeypatch.setattr(long_work, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with long_work.stages() as progress:
        for done in range(1, 7):
            progress("own_answers", done, 6)
    captured = capsys.readouterr()
    assert [line.split(", ")[0] for line in captured.err.splitlines()] == ["own answers: 3 of 6", "own answers: 6 of 6"]
    assert not captured.out


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with long_work.stages() as progress:
        progress("weights", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_files_of_a_graph_count_together() -> None:
    files = {"decoder.onnx": 1000, "decoder.data": 2_000_000, "mtp.data": 7, "mtp.onnx": 3, "lensmith.json": 5,
             "golden/a.png": 1, "golden/b.png": 2, "golden/c.npz": 3, "golden/d.gif": 4, "model.gguf": 10}  # fmt: skip
    assert component_sizes(files) == [
        ("decoder", "decoder.data, decoder.onnx", "2.00 MB"),
        ("golden", "golden/a.png, golden/b.png, golden/c.npz, …", "10 B"),
        ("lensmith.json", "lensmith.json", "5 B"),
        ("model.gguf", "model.gguf", "10 B"),
        ("mtp", "mtp.data, mtp.onnx", "10 B"),
    ]


def test_what_an_export_says_of_its_proof() -> None:
    recorded = {"recorded": True, "reference": "PyTorch", "rounding": {"mean_kl": 0.0123, "same_token": 0.987}}
    assert _proof(recorded) == {
        "graphs and weights": "proven with PyTorch",
        "rounding": "KL 0.012 nats, 99% of its tokens (given the same tokens)",
    }
    assert _proof({"recorded": True, "reference": "PyTorch"}) == {"graphs and weights": "proven with PyTorch"}
    assert _proof({"recorded": False, "reason": "no PyTorch"}) == {"golden traces": "none: no PyTorch"}
    elsewhere = _proof({"recorded": False, "reason": "engines", "proven": "PyTorch"})
    assert elsewhere == {"graphs and weights": "proven with PyTorch", "golden traces": "none: engines"}
    assert _proof({}) == {"golden traces": "none: not recorded"}


def judged(kl: float, top1: tuple[float, float], accuracy: dict[str, float]) -> dict[str, Any]:
    return {"kl": {"text": kl, "image": 2 * kl}, "top1": dict(zip(("text", "image"), top1, strict=True)),
            "positions": {"text": 30, "image": 10}, "perplexity": 3.25, "accuracy": accuracy,
            "groups": {"own kinds": kl, "answers": kl / 4}, "drafts": {"accepted": 0.875}}  # fmt: skip


@pytest.mark.parametrize("kept", [True, False])
def test_what_an_export_says_of_its_calibration(kept: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 40 positions, 30 have 90 % and 10 have 50 %: 80 %. Two tasks count the same."""
    accuracy = {"read": 1.0, "count": 0.5}
    judgement = {"float": judged(0, (1, 1), accuracy), "nearest": judged(0.5, (0.9, 0.5), accuracy),
                 "calibrated": judged(0.25, (1, 0.6), {"read": 0.25, "count": 0.5})}  # fmt: skip
    tried = {"descent": ["answers"], **({} if kept else {"gptq": ["own kinds"]})}
    print_calibration({"judgement": judgement, "method": "gptq", "kept": kept, "tried": tried})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    nearest = next(line for line in lines if line[:3] == ["rounded", "to", "nearest"])
    assert nearest[3:] == ["0.5000", "1.0000", "80.0%", "3.250", "75.0%", "87.5%"]
    calibrated, groups = [line[1:] for line in lines if line[:1] == ["gptq"] and line[1] != "was"]
    assert calibrated[:5] == ["0.2500", "0.5000", "90.0%", "3.250", "37.5%"]
    assert groups == ["0.25", "0.0625"]
    worse = " ".join(word for line in lines for word in line)
    assert (
        f"descent was worse than gptq or rounding to nearest on answers: {'gptq' if kept else 'rounding'} is kept"
        in worse
    )
    assert ("gptq was worse than rounding to nearest on own kinds" in worse) != kept


def test_an_importance_matrix_says_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"calibrated": 8, "source": "built-in", "image_tokens": 640, "text_tokens": 99}
    print_calibration({"samples": samples, "matrices": 20})
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("8 of built-in", "640 of images, 99 of text", "20"))
    assert [find_lowering(name).calibration for name in ("onnx", "gguf", "tensorrt")] == [
        "descent",
        "imatrix",
        "descent",
    ]


def bundle(**sections: Any) -> Bundle:
    return Bundle(Path("somewhere"), content(**sections))


def test_precisions_are_counted_and_sorted_by_size() -> None:
    entry = {"bits": 4, "group_size": 32, "symmetric": False, "reason": "decoder: 4 bits", "parameters": 1000}
    floats = {"bits": 32, "group_size": 0, "symmetric": False, "reason": "norms", "parameters": 10, "bytes": 40}
    rows = {"a": {**entry, "bytes": 500}, "b": {**entry, "bytes": 700}, "c": floats,
            "d": {**entry, "symmetric": True, "bytes": 2000}}  # fmt: skip
    screen = io.StringIO()
    shown = console()
    shown.file = screen
    shown.print(_precision(bundle(precision=rows)))
    lines = [line.split() for line in screen.getvalue().splitlines()[2:]]
    assert lines == [
        ["4", "32", "1", "1,000", "2.00", "kB", "decoder:", "4", "bits"],
        ["4", "32", "yes", "2", "2,000", "1.20", "kB", "decoder:", "4", "bits"],
        ["32", "1", "10", "40", "B", "norms"],
    ]


def test_nested_figures() -> None:
    assert dict(_flat({"golden": {"mean_kl": 0.5, "cases": ["a", "b"]}, "x_y": 1})) == {
        "golden: mean kl": 0.5, "golden: cases": "a, b", "x y": 1}  # fmt: skip


def test_errors_have_their_exit_codes_and_closest_names() -> None:
    codes = {LensmithError: 1, InputError: 2, CheckFailed: 1}
    assert {kind: kind("x").exit_code for kind in codes} == codes
    assert MissingExtra("a", "b").exit_code == 2
    assert closest("cpus", ("cuda", "cpu")) == "did you mean 'cpu'?"
    assert closest("zzz", ("b", "a")) == "known: a, b"
    many = [f"name{number}" for number in range(41)]
    assert closest("zzz", many) == ""
    assert closest("zzz", many[:40]).startswith("known: name0, ")
