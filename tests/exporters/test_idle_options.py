"""Options that would change nothing are refused, by Python and by the command line alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes import load
from lensmith.runtimes.generation.sampling import SamplingOptions
from lensmith.targets.errors import InputError
from lensmith.targets.profile import load_target
from PIL import Image

from tests.cli.test_cli_errors import assert_one_sentence
from tests.helpers import arlow
from tests.helpers.extras import Ran
from tests.paths import TINY

Cli = Callable[..., Ran]
IDLE = {
    "groups of floats": (("--precision", "fp16", "--group-size", "32"), "--group-size has no effect"),
    "the usual groups of floats": (("--precision", "fp32", "--group-size", "128"), "--group-size has no effect"),
    "zero points of floats": (("--precision", "fp32", "--asymmetric"), "--asymmetric has no effect"),
    "groups of rows": (
        ("--format", "tensorrt", "--target", "jetson-thor", "--precision", "int8", "--group-size", "32"),
        "--group-size has no effect",
    ),
    "groups of 8-bit floats": (
        ("--format", "tensorrt", "--target", "jetson-thor", "--precision", "fp8", "--group-size", "32"),
        "--group-size has no effect",
    ),
    "types of GGUF": (("--tensor-type", "ffn_down=q4_0"), "--tensor-type has no effect"),
    "a revision": (("--revision", "A"), "leave out --revision A"),
}


@pytest.mark.parametrize("case", IDLE)
@pytest.mark.parametrize("command", ["plan", "export"])
def test_options_without_effect_are_refused(cli: Cli, command: str, case: str, tmp_path: Path) -> None:
    wishes, told = IDLE[case]
    out = ("-o", tmp_path / "bundle") if command == "export" else ()
    assert_one_sentence(cli(command, TINY / "qwen3_vl", *wishes, *out), told, "leave")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["int8", "int4", "int3", "int2"])
@pytest.mark.parametrize("wish", [{"group_size": 32}, {"group_size": 128}, {"symmetric": False}])
def test_options_with_effect_are_taken(precision: str, wish: dict[str, int]) -> None:
    job = prepare(TINY / "qwen3_vl", Options(precision=precision, **wish))  # type: ignore[arg-type]
    schemes = [s.matrix.scheme for graph in job.graphs for s in graph.sources if s.matrix and graph.name == "decoder"]
    assert any(scheme.group_size == job.options.group_size for scheme in schemes)
    assert any(scheme.symmetric == job.options.symmetric for scheme in schemes)


def test_an_encoder_has_no_groups_to_choose(cli: Cli, tmp_path: Path) -> None:
    assert cli("synth", "arlow-vision", "--tiny", "-o", tmp_path / "arlow").code == 0
    with pytest.raises(InputError, match="--group-size has no effect"):
        prepare(tmp_path / "arlow", Options(precision="int8", group_size=32))


@pytest.mark.parametrize("wish", [("--sample-count", "4"), ("--seed", "3")])
def test_wishes_about_samples_ask_for_calibration(cli: Cli, wish: tuple[str, str], tmp_path: Path) -> None:
    """They were without effect unless another option asked for it."""
    ran = cli("export", TINY / "qwen3_vl", "-o", tmp_path / "bundle", "--precision", "fp32", *wish)
    assert_one_sentence(ran, "rounds nothing that calibration could improve", "use int4")


def test_a_limit_of_no_questions_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert_one_sentence(
        cli("compare", tmp_path, "--against", TINY / "qwen3_vl", "--limit", "3"), "--limit counts", "--tasks"
    )


def test_a_benchmark_of_no_questions_is_refused(cli: Cli, tmp_path: Path) -> None:
    ran = cli("compare", tmp_path, "--against", TINY / "qwen3_vl", "--benchmark", "GQA")
    assert_one_sentence(ran, "--benchmark says what --tasks holds", "--tasks")


ASKED = {
    "an empty question": (("",), ("the question is empty", "write what to answer")),
    "spaces for a question": (("  ",), ("the question is empty", "write what to answer")),
    "a limit of images that are not there": (
        ("Hi", "--max-image-megapixels", "5"),
        ("--max-image-megapixels has no effect without --image or --video", "leave it out"),
    ),
    "a filter of greedy decoding": (
        ("Hi", "--greedy", "--top-k", "3"),
        ("top_k is 3, which has no effect", "do_sample False; leave it out"),
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_questions_without_effect_are_refused(cli: Cli, tiny_bundle: Path, case: str) -> None:
    arguments, told = ASKED[case]
    assert_one_sentence(cli("run", tiny_bundle, *arguments), *told)


def test_a_seed_for_nothing() -> None:
    with pytest.raises(InputError, match=r"seed is 3, which has no effect .* give a temperature too, or leave it out$"):
        SamplingOptions(seed=3)


def test_conversations_given_to_ask(tiny_bundle: Path) -> None:
    model = load(tiny_bundle)
    with pytest.raises(InputError, match=r"the question is a NoneType; expected a text .*generate takes conversations"):
        model.ask(messages=[])
    with pytest.raises(InputError, match="the question is empty"):
        model.ask("")
    assert model.ask("", [Image.new("RGB", (64, 64))], max_new_tokens=1).read() is not None


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava", "arlow"])
def test_a_context_arrives(family: str) -> None:
    """And without one it is the model's, or that of the target."""
    place = arlow.CHECKPOINT if family == "arlow" else TINY / family
    own = prepare(place, Options()).spec.context
    for context in (own - 1, 640):
        job = prepare(place, Options(context=context))
        assert job.spec.context == job.sections["limits"]["context"] == context
    gpu = load_target("jetson-thor").gpu
    if family != "arlow" and gpu is not None:
        wishes = Options(format="tensorrt", target="jetson-thor")
        assert prepare(place, wishes).spec.context == min(own, gpu.context)
        assert prepare(place, replace(wishes, context=own - 1)).spec.context == own - 1
