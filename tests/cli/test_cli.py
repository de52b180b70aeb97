"""The commands do what they say on a tiny checkpoint: export, plan, run, chat, inspect, verify, synth, targets."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.extras import EXTRAS, MAIN, Ran, run_without

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (320, 256), (200, 30, 30)).save(path)
    return path


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_export_prints_plan_result_and_path_last(
    cli: Cli, tiny_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "bundle"
    ran = cli("export", tiny_checkpoint, "-o", out, "--precision", precision, "--golden", "never")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.index("Plan") < ran.out.index("Weights") < ran.out.index("Result") < ran.out.index("peak memory")
    assert ran.out.splitlines()[-1] == str(out)
    assert (out / "lensmith.json").is_file()


def test_export_json_is_one_document(cli: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ran = cli("export", tiny_checkpoint, "-o", tmp_path / "b", "--golden", "never", "--asymmetric", "--json",
              "--group-size", 32)  # fmt: skip
    result = json.loads(ran.out)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert result["bundle_bytes"] == on_disk == sum(result["files"].values())
    assert result["plan"]["parameters"] == 6_290_560


def test_plan_foretells_the_bundle(cli: Cli, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    plan = json.loads(cli("plan", tiny_checkpoint, "--json").out)
    on_disk = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert plan["bundle_bytes"] - plan["golden_bytes"] == pytest.approx(on_disk, rel=0.01)  # built without
    assert plan["cache_bytes_per_token"] == 4 * 2 * 2 * 128 * 2  # layers, key and value, heads, head size, float16
    assert plan["image_tokens"]["640 x 480"] == 300
    weights = sum(row["disk_bytes"] for row in plan["storage"])
    assert weights == pytest.approx(sum(p.stat().st_size for p in tiny_bundle.glob("*.data")), rel=0.05)


def test_plan_follows_its_options(cli: Cli, tiny_checkpoint: Path) -> None:
    ran = cli("plan", tiny_checkpoint, "--context", 4096, "--max-pixels", 262144, "--precision", "fp32")
    assert ran.code == 0
    assert "for 4096 tokens" in ran.out
    assert re.search("4032 x 3024 +234 ", ran.out)  # 576 x 416 pixels: at most 262144 at this aspect, multiples of 32
    assert "float32" in ran.out
    assert "int4" not in ran.out


def test_run_streams_text(cli: Cli, tiny_bundle: Path, picture: Path) -> None:
    ran = cli("run", tiny_bundle, "What is this?", "--image", picture, "--greedy", "--max-new-tokens", 6, "--timings")
    assert ran.code == 0
    assert len(ran.out.strip()) > 6
    assert "80 image tokens" in ran.err
    assert "tokens/s" in ran.err


def test_run_json_has_the_text_and_figures(cli: Cli, tiny_bundle: Path, picture: Path) -> None:
    arguments = ("run", tiny_bundle, "What?", "--image", picture, "--greedy", "--max-new-tokens", 6)
    result = json.loads(cli(*arguments, "--json").out)
    assert result["text"] + "\n" == cli(*arguments).out
    assert result["finish_reason"] == "length"
    assert len(result["ids"]) == 6
    assert result["timings"]["image_tokens"] == 80
    system = json.loads(cli(*arguments, "--json", "--system", "Be brief.").out)
    assert system["timings"]["prompt_tokens"] > result["timings"]["prompt_tokens"]


def test_sampling_options_reach_the_model(cli: Cli, tiny_bundle: Path) -> None:
    arguments = ("run", tiny_bundle, "Hi", "--sample", "--temperature", 1.5, "--top-k", 0, "--top-p", 1,
                 "--max-new-tokens", 8, "--json")  # fmt: skip
    first, again, other = (json.loads(cli(*arguments, "--seed", seed).out)["ids"] for seed in (1, 1, 2))
    assert first == again != other
    short = (*arguments[:3], "--max-new-tokens", 8, "--json")
    nearly_greedy = json.loads(cli(*short, "--top-k", 1, "--seed", 3).out)["ids"]
    assert nearly_greedy == json.loads(cli(*short, "--greedy").out)["ids"]


def test_question_from_standard_input(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "Hi there")
    piped = cli("run", tiny_bundle, "-", "--greedy", "--max-new-tokens", 4)
    assert piped.out == cli("run", tiny_bundle, "Hi there", "--greedy", "--max-new-tokens", 4).out


def test_chat_keeps_the_conversation(
    cli: Cli, tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, f"/help\n/image {picture}\nWhat?\n\nAnd then?\n/reset\n/system Be brief.\nWhat?\n/quit\nno\n")
    ran = cli("chat", tiny_bundle, "--greedy", "--max-new-tokens", 4)
    assert ran.code == 0
    assert len(ran.out.splitlines()) >= 3
    assert "/image FILE" in ran.err


def test_chat_survives_a_stopped_answer(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lensmith.cli import talk

    seen: list[int] = []

    def interrupted(answer: Any) -> None:
        seen.append(answer.timings.prompt_tokens)
        next(iter(answer))
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "stream_parts", interrupted)
    type_in(monkeypatch, "One\nTwo\n")
    ran = cli("chat", tiny_bundle, "--greedy", "--max-new-tokens", 4)
    assert ran.code == 0
    assert ran.err.count("(stopped)") == 2
    assert seen[1] > seen[0] + 5  # the first turn is part of the second prompt


def test_terminals_get_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    from lensmith.cli import answering as answer

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    answer.stream(["a\x1b]0;b\x07\n", "c\x9bm\u00e9"])  # type: ignore[arg-type]
    assert screen.getvalue() == "a\ufffd]0;b\ufffd\nc\ufffdm\u00e9\n"


def test_inspect(cli: Cli, tiny_bundle: Path) -> None:
    ran = cli("inspect", tiny_bundle, "--tensors")
    assert ran.code == 0
    for text in ("qwen3_vl", "vision_encoder.data", "past_key_values.*.key", "max image tokens", 
                 "model.language_model.embed_tokens.weight", "switched off by --golden never"):  # fmt: skip
        assert text in ran.out
    assert json.loads(cli("inspect", tiny_bundle, "--json").out)["family"] == "qwen3_vl"


def test_plan_proposes_for_a_budget(cli: Cli, tiny_checkpoint: Path) -> None:
    asked = ("plan", tiny_checkpoint, "--target", "raspberry-pi-5")
    fits = cli(*asked, "--memory", "1GB", "--first-token", "5s", "--max-pixels", 262144)
    assert "This build fits raspberry-pi-5 and keeps to the wishes." in fits.out
    assert re.search("onnx +int8 +128 +262,144", fits.out)
    never = cli(*asked, "--memory", "1MB", "--json")
    device = json.loads(never.out)["device"]
    assert (never.code, device["fits"], device["proposals"]) == (0, False, [])
    assert "0.00 GB are there" in device["nearest_misses"][0]
    assert "No build does; the nearest" in cli(*asked, "--memory", "1MB").out
    for option, value, said in (("--memory", "much", "not a size"), ("--first-token", "soon", "not a time"),
                                ("--first-token", "0s", "not a time"), ("--decode", 0, "--decode")):  # fmt: skip
        ran = cli(*asked, option, value)
        assert (ran.code, said in ran.err) == (2, True), ran.err


def test_plan_of_all_targets(cli: Cli, tiny_checkpoint: Path) -> None:
    found = json.loads(cli("plan", tiny_checkpoint, "--all-targets", "--json").out)
    assert found.keys() == {row["name"] for row in json.loads(cli("targets", "--json").out)}
    assert found["jetson-thor"]["format"] == "tensorrt"
    assert "jetson-thor" in cli("plan", tiny_checkpoint, "--all-targets").out
    for option, value in (("--target", "cpu"), ("--precision", "int8"), ("--format", "onnx"), ("--group-size", 32)):
        ran = cli("plan", tiny_checkpoint, "--all-targets", option, value)
        assert (ran.code, f"leave out {option}" in ran.err) == (2, True), ran.err
    assert cli("plan", tiny_checkpoint, "--all-targets", "--context", 10**9).code == 2  # more than the model's


def test_a_plan_takes_the_format_of_its_target(cli: Cli, tiny_checkpoint: Path) -> None:
    for arguments, target in ((("--target", "jetson-thor"), "jetson-thor"),
                              (("--target", "rk3588", "--format", "gguf"), "rk3588")):  # fmt: skip
        assert json.loads(cli("plan", tiny_checkpoint, *arguments, "--json").out)["device"]["target"] == target
    assert "not for the target" in cli("plan", tiny_checkpoint, "--target", "cpu", "--format", "tensorrt").err


def test_targets(cli: Cli) -> None:
    assert "cpu" in cli("targets").out
    assert json.loads(cli("targets", "--json").out)[0]["dialect"] == "ort"
    assert tomllib.loads(cli("targets", "rk3588").out)["device"]["threads"] == 4
    assert json.loads(cli("targets", "rk3588", "--json").out)["device"]["threads"] == 4


def test_targets_of_this_machine(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"int4": 4e11, "float32": 1e11}
    monkeypatch.setattr("lensmith.runtimes.measuring.measured_profile.measured_rates", lambda _: (2e10, rates))
    path = tmp_path / "mine.toml"
    assert cli("targets", "--measure", "-o", path, "--threads", 3).out.strip() == str(path)
    found = json.loads(cli("targets", path, "--json").out)
    assert (found["name"], found["device"]["threads"], found["device"]["operations_per_s"]) == ("mine", 3, rates)
    assert found["device"]["read_bytes_per_s"] == 2e10
    for arguments, said in (
        (("--measure", "-o", path), "add --force"), (("--measure",), "expected -o mine.toml"),
        (("--measure", "cpu", "-o", path), "not cpu"), (("cpu", "--threads", 2), "--threads is for --measure"),
    ):  # fmt: skip
        ran = cli("targets", *arguments)
        assert (ran.code, said in ran.err) == (2, True), ran.err


def test_synth_says_where(cli: Cli, tmp_path: Path) -> None:
    ran = cli("synth", "qwen3-vl-2b", "-o", tmp_path / "new", "--tiny", "--seed", 3)
    assert (ran.code, ran.out.strip()) == (0, str(tmp_path / "new"))
    assert (tmp_path / "new" / "model.safetensors").is_file()


def test_closed_pipe_is_quiet(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "lensmith.cli", "inspect", str(tiny_bundle), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("arguments", [("run", "BUNDLE", "Hi", "--max-new-tokens", "2"), ("inspect", "BUNDLE"),
                                       ("targets",), ("--help",), ("export", "--help")])  # fmt: skip
def test_a_device_needs_the_base_packages_only(tiny_bundle: Path, arguments: tuple[str, ...]) -> None:
    given = [str(tiny_bundle) if argument == "BUNDLE" else argument for argument in arguments]
    ran = run_without(EXTRAS, MAIN, *given)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(("arguments", "extra"), [
    (("export", "FOLDER", "-o", "x"), "export"), (("plan", "FOLDER"), "export"),
    (("compare", "b", "--against", "FOLDER"), "torch"),
])  # fmt: skip
def test_a_missing_extra_is_named(tiny_checkpoint: Path, arguments: tuple[str, ...], extra: str) -> None:
    given = [str(tiny_checkpoint) if argument == "FOLDER" else argument for argument in arguments]
    ran = run_without(EXTRAS, MAIN, *given)
    assert ran.returncode == 2
    assert f"pip install 'lensmith[{extra}]'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_verify_fails_with_code_1(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lensmith.runtimes.evidence import verification as verify
    from lensmith.runtimes.evidence.replay import Row

    rows = [Row("one image", "decoder: logits", "logits_error", 0.1, 0.2), Row("two", "image", "kl", 3.0, 0.2, False)]
    for chosen, code in ((rows[:1], 0), (rows, 1)):
        report = verify.VerifyReport("bundle", "PyTorch", False, tuple(chosen))
        monkeypatch.setattr(verify, "verify", lambda _, report=report, **how: report)
        ran = cli("verify", tiny_bundle)
        assert ran.code == code
        assert ("FAILED" in ran.out) == (code == 1)
        assert ran.err.count("\n") == code
        assert json.loads(cli("verify", tiny_bundle, "--json").out)["passed"] == (code == 0)


def test_compare_hands_its_options_on(
    cli: Cli, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lensmith.exporters.comparing import comparison as compare
    from lensmith.exporters.reports import report

    class Figures:
        def to_json(self) -> str:
            return "{}\n"

    given: list[Any] = []

    def record(*arguments: Any, adapter: None) -> Figures:
        given.append(arguments)
        return Figures()

    monkeypatch.setattr(compare, "compare", record)
    monkeypatch.setattr(report, "table", lambda figures: "the table")
    monkeypatch.setattr(report, "html", lambda figures: "<html>")
    ran = cli("compare", tiny_bundle, "--against", tiny_checkpoint, "--html", tmp_path / "new" / "r.html", "--json",
              tmp_path / "r.json", "--tasks", tmp_path / "t", "--limit", 7, "--repeats", 2, "--dtype", "bf16",
              "--threads", 3)  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == ["the table", str(tmp_path / "r.json"), str(tmp_path / "new" / "r.html")]
    bundle, checkpoint, options, _ = given[0]
    assert (bundle, checkpoint) == (tiny_bundle, tiny_checkpoint)
    assert (options.dtypes, options.limit, options.repeats, options.threads) == (("bfloat16",), 7, 2, 3)
    assert cli("compare", tiny_bundle, "--against", tiny_checkpoint, "--json", "-").out == "{}\n"
    assert given[1][2].dtypes == ("float32", "bfloat16")
