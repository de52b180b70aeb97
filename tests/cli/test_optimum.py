"""`optimum-cli export lensmith`, run by optimum itself, with this file in the place of the installed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lensmith.runtimes.bundle.opening import open_bundle

from tests.paths import ROOT

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed (extra dev)")
REGISTER = ROOT / "cli" / "optimum_register.py"
RUN = """
import importlib.util, sys
from optimum.commands import optimum_cli
spec = importlib.util.spec_from_file_location("register_lensmith", sys.argv.pop(1))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
optimum_cli.load_optimum_namespace_cli_commands = lambda: module.REGISTER_COMMANDS
sys.argv[0] = "optimum-cli"
optimum_cli.main()
"""


def optimum(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(REGISTER), "export", "lensmith", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("order", ["long", "short", "output first", "two paths", "dash o", "everywhere"])
def test_the_ways_to_name_checkpoint_and_output(tiny_checkpoint: Path, tmp_path: Path, order: str) -> None:
    out, quick = tmp_path / "bundle", ("--golden", "never")
    ways: dict[str, tuple[object, ...]] = {
        "long": ("--model", tiny_checkpoint, *quick, out),
        "short": ("-m", tiny_checkpoint, out, *quick, "--task", "image-text-to-text"),
        "output first": (out, *quick, "--model", tiny_checkpoint),
        "two paths": (tiny_checkpoint, out, *quick),
        "dash o": (tiny_checkpoint, "-o", out, *quick),
        "everywhere": (*quick, "--group-size", "32", "--asymmetric", "--model", tiny_checkpoint, "--json", out),
    }
    ran = optimum(*ways[order])
    assert ran.returncode == 0, ran.stderr
    options = open_bundle(out, check="sha256").content["options"]
    if order == "everywhere":
        assert (options["group_size"], options["symmetric"]) == (32, False)
        assert json.loads(ran.stdout)["bundle"] == str(out)
    else:
        assert ran.stdout.splitlines()[-1] == str(out)


def test_mistakes_are_those_of_the_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--model", tiny_checkpoint), "--out"),
        (("--model", tmp_path, tmp_path / "out"), "config.json"),
        (("--model", tiny_checkpoint, tmp_path / "out", "--precision", "int5"), "int5"),
        (("--model", tiny_checkpoint, tmp_path / "out", "-o", tmp_path / "other"), "xpected"),
        (("--model", tiny_checkpoint, tmp_path / "out", "--task", "fill-mask"), "fill-mask"),
    ):
        ran = optimum(*arguments)
        assert (ran.returncode, words in ran.stderr) == (2, True), ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_shows_the_options() -> None:
    ran = optimum("--help")
    assert ran.returncode == 0
    assert all(option in ran.stdout for option in ("--model", "--precision", "--calibrate", "--force"))
