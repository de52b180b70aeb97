"""`lensmith tune`, and what commands make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lensmith.runtimes import Model
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.tuning import bench
from lensmith.runtimes.tuning.tuned_files import keep_tuning, read_tuning
from lensmith.runtimes.tuning.tuning import Tuning

from tests.helpers.extras import Ran

QUICK = ("--image-size", "64x64", "--new-tokens", 8, "--repeats", 3)
Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CONTEXT", 192)


def test_what_is_measured_is_kept_and_forgotten(cli: Cli, tiny_bundle: Path, tunings: Path) -> None:
    ran = cli("tune", tiny_bundle, *QUICK, "--json")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    (path,) = tunings.iterdir()
    assert data["kept"] == str(path)
    assert read_tuning(open_bundle(tiny_bundle)) == Tuning(**data["tuning"])
    assert {each["setting"] for each in data["trials"]} >= {"chunk"}
    assert all(len(each["runs"]) == 3 and each["tokens_per_s"] > 0 and each["same_answer"] for each in data["trials"])
    assert "head_drafts" in data["not_tuned"]
    shown = json.loads(cli("inspect", tiny_bundle, "--json").out)
    assert shown["tuned"] == data["tuning"]
    ran = cli("tune", tiny_bundle, "--reset")
    assert (ran.code, ran.out) == (0, f"{tiny_bundle} runs with the usual defaults: one tuning is forgotten.\n")
    assert list(tunings.iterdir()) == []
    assert json.loads(cli("inspect", tiny_bundle, "--json").out)["tuned"] is None
    assert json.loads(cli("tune", tiny_bundle, "--reset", "--json").out)["forgotten"] == 0


def test_a_dry_run_keeps_nothing(cli: Cli, tiny_bundle: Path, tunings: Path) -> None:
    tunings.parent.write_text("no folder")
    ran = cli("tune", tiny_bundle, *QUICK, "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == "Nothing was kept."
    assert "640 (usual)" in ran.out
    assert "Not tuned: most drafts of the head: the bundle has no draft head." in ran.out


def test_without_room_nothing_is_measured(cli: Cli, tiny_bundle: Path, tunings: Path) -> None:
    tunings.parent.write_text("no folder")
    ran = cli("tune", tiny_bundle)
    assert ran.code == 2
    assert "XDG_CACHE_HOME" in ran.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image-size", "64"), "'64' is not a size; expected WIDTHxHEIGHT"),
        (("--image-size", "0x64"), "'0x64' is not a size"),
        (("--image-size", "64x99999"), "is not a size"),
        (("--repeats", 1), "1 is not in the range"),
        (("--reset", "--dry-run"), "--reset measures nothing"),
        (("--reset", "--repeats", 5), "--reset measures nothing"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--device", "cuda"), "not for CUDA"),
    ],
)
@pytest.mark.usefixtures("tunings")
def test_refusals(cli: Cli, tiny_bundle: Path, options: tuple[object, ...], words: str) -> None:
    ran = cli("tune", tiny_bundle, *options)
    assert ran.code == 2
    assert words in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.usefixtures("tunings")
def test_runs_take_it(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_tuning(open_bundle(tiny_bundle), Tuning(threads=1, chunk=64))
    opened = list[Model]()
    begin = Model.__init__

    def noted(self: Model, *given: object, **chosen: object) -> None:
        begin(self, *given, **chosen)  # type: ignore[arg-type]
        opened.append(self)

    monkeypatch.setattr(Model, "__init__", noted)
    assert cli("run", tiny_bundle, "Hi", "--max-new-tokens", 1, "--context", 64).code == 0
    assert cli("run", tiny_bundle, "Hi", "--max-new-tokens", 1, "--context", 64, "--threads", 2).code == 0
    assert [(each._wishes.threads, each._wishes.chunk) for each in opened] == [(1, 64), (2, 64)]


@pytest.mark.usefixtures("tunings")
def test_inspect_tells(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        lines = cli("inspect", tiny_bundle).out.splitlines()
        return next(line for line in lines if line.startswith("tuned here")).removeprefix("tuned here").strip()

    assert told() == "no; see: lensmith tune"
    keep_tuning(open_bundle(tiny_bundle), Tuning())
    assert "the usual defaults were quickest" in told()
    keep_tuning(open_bundle(tiny_bundle), Tuning(decode_threads=1, ngram_drafts=0))
    assert "decode threads 1, ngram drafts 0" in told()
    monkeypatch.setattr("lensmith.runtimes.tuning.tuned_files.usable_cores", lambda: 77)
    assert "which is not used" in told()
