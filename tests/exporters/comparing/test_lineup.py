"""Many builds in one report: each in its process, what fails among them, encoders, and conditions on the figures."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.comparing import baselines, lineup
from lensmith.exporters.comparing.cases import photo
from lensmith.exporters.comparing.comparison import CompareOptions
from lensmith.exporters.comparing.contender import Assignment
from lensmith.exporters.comparing.job_process import run_job
from lensmith.exporters.comparing.layer_errors import layer_errors
from lensmith.exporters.comparing.lineup import Group, compare_groups, compare_many, encodes_alone, grouped
from lensmith.exporters.comparing.machine import has_nvidia_gpu
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.reports.lineup_records import Entrant, Lineup
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.targets.errors import InputError, LensmithError

from tests.helpers import arlow, ladder
from tests.paths import TINY

SOURCE = TINY / "qwen3_vl"
QUICK = CompareOptions(dtypes=("float32",), threads=1, repeats=1, decode_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one model in two precisions, a picture, and questions."""
    made = tmp_path_factory.mktemp("lineup")
    for precision in ("fp32", "int3"):
        export(prepare(SOURCE, Options(precision=precision, max_pixels=65536)), made / precision, golden="never")
    photo((96, 64), seed=1).save(made / "a.png")
    row = {"task": "read", "images": ["a.png"], "prompt": "What word is written?", "answer": "lion"}
    (made / "tasks.jsonl").write_text(json.dumps(row))
    return made


@pytest.fixture(scope="module")
def against_torch(folder: Path) -> Lineup:
    ladder.need_torch()
    options = replace(QUICK, tasks=folder / "tasks.jsonl", image=folder / "a.png", command="lensmith compare")
    return compare_many([folder / "fp32", folder / "int3"], SOURCE, options)


def by_name(made: Lineup) -> dict[str, Entrant]:
    return {entrant.name: entrant for entrant in made.entrants}


def test_bundles_and_pytorch_are_measured(against_torch: Lineup) -> None:
    assert [entrant.name for entrant in against_torch.entrants] == ["fp32", "int3", "PyTorch float32"]
    assert against_torch.references == {"qwen3_vl": "PyTorch float32"}
    for entrant in against_torch.entrants:
        made = entrant.measured
        assert made is not None
        assert made.decode_tokens_per_s is not None
        assert min(made.load_ms, made.first_token_ms, made.decode_tokens_per_s.median, entrant.size_bytes) > 0
        assert 0 < made.image_tokens < made.prompt_tokens
        assert [(task.task, task.samples) for task in entrant.tasks] == [("read", 1)]
    assert set(against_torch.noise) == {"load", "first token", "memory", "decode"}
    assert Lineup.from_json(against_torch.to_json()) == against_torch


def test_rounding_shows_in_distributions_and_layers(against_torch: Lineup) -> None:
    exact, rounded, reference = against_torch.entrants
    assert exact.agreement is not None
    assert rounded.agreement is not None
    assert exact.agreement.kl_max < 1e-5 < rounded.agreement.kl_mean
    assert reference.agreement is None
    assert reference.drop is not None
    assert exact.drop is not None
    assert reference.drop.mean == exact.drop.mean == 0
    assert {row.error for row in exact.layers} == {0.0}
    decoder = [row.error for row in rounded.layers if row.stack == "decoder"]
    assert len(decoder) == open_checkpoint(SOURCE).config["text_config"]["num_hidden_layers"]
    assert all(0.1 < error < 0.4 for error in decoder)  # 8 levels over 3 or 4 deviations to each side


def test_commands_make_the_bundles_again(against_torch: Lineup) -> None:
    command = by_name(against_torch)["int3"].command
    assert command.startswith(f"lensmith export {SOURCE} -o int3 --format onnx --target cpu --precision int3")
    assert command.endswith("--kv-cache float16 --max-pixels 65536 --golden never")
    assert by_name(against_torch)["int3"].build == "onnx cpu int3 g128"


def test_errors_of_layers_are_those_of_the_weights(folder: Path) -> None:
    """Worked out from what is read of one matrix that is alone in its layer."""
    from lensmith.exporters.comparing.recorded_options import job_of
    from lensmith.exporters.evidence.written_weights import StoredGraph

    bundle, checkpoint = open_bundle(folder / "int3"), open_checkpoint(SOURCE)
    (first, *_) = [row for row in layer_errors(bundle, checkpoint) if row.stack == "decoder"]
    off, whole = 0.0, 0.0
    job = job_of(bundle, SOURCE)
    for graph in job.lowering.graphs(job):
        for source in graph.sources:
            if source.matrix is not None and "language_model.layers.0." in source.name:
                found = source.matrix.unpack(StoredGraph(graph, bundle.path).parts(source))
                wanted = np.asarray(checkpoint.tensor(source.name).numpy(), np.float64).reshape(found.shape)
                off, whole = off + ((found - wanted) ** 2).sum(), whole + (wanted**2).sum()
    assert first.error == pytest.approx((off / whole) ** 0.5)


def test_without_a_checkpoint_the_first_bundle_is_the_reference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what fails is a row of its own: here the second, whose process is made to end."""
    run = run_job

    def failing(job: Assignment, *rest: Any) -> Any:
        if job.name == "int3":
            raise LensmithError("int3 was killed")
        return run(job, *rest)

    monkeypatch.setattr(lineup, "run_job", failing)
    made = compare_many([folder / "fp32", folder / "int3"], None, replace(QUICK, image=folder / "a.png"))
    first, second = made.entrants
    assert made.references == {"qwen3_vl": "fp32"}
    assert first.measured is not None
    assert (second.measured, second.failure) == (None, "int3 was killed")
    assert [entrant.name for entrant in made.failed] == ["int3"]
    assert first.layers == second.layers == ()


@pytest.mark.skipif(has_nvidia_gpu(), reason="there is an NVIDIA GPU here")
def test_what_needs_a_gpu_says_so_beside_the_others(folder: Path, tmp_path: Path, cli: Any) -> None:
    export(prepare(SOURCE, Options("tensorrt", "fp16", target="jetson-orin-nano")), tmp_path / "orin", golden="never")
    export(prepare(SOURCE, Options(precision="fp16", target="cuda")), tmp_path / "cuda", golden="never")
    bundles, page = (tmp_path / "orin", folder / "int3", tmp_path / "cuda"), tmp_path / "r.md"
    ran = cli("compare", *bundles, "--threads", 1, "--repeats", 1, "--json", tmp_path / "r.json", "--markdown", page)
    assert ran.code == 1  # since not all were measured
    assert "2 could not be measured: orin: it needs a GPU of NVIDIA, whose driver is not on this machine: " in ran.err
    made = by_name(Lineup.from_json((tmp_path / "r.json").read_text()))
    assert {name: (entrant.lacks, entrant.measured is None) for name, entrant in made.items()} == {
        "orin": ("a GPU", True), "int3": ("", False), "cuda": ("a GPU", True),
    }  # fmt: skip
    assert "lensmith build" in made["orin"].failure
    assert page.read_text().count("| needs a GPU |") == 2


def test_all_entrants_are_told_apart(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, checkpoints and files of another program that are called the same; all fail here."""

    def failing(job: Assignment, *_: Any) -> Any:
        raise LensmithError("killed")

    monkeypatch.setattr(lineup, "run_job", failing)
    for name in ("a", "b"):
        shutil.copytree(folder / "fp32", tmp_path / name / "fp32")
    groups = [Group((open_bundle(tmp_path / name / "fp32"),)) for name in ("a", "b")]
    program = f"llama.cpp={folder / 'a.png'},{folder / 'a.png'}"
    made = compare_groups(groups, replace(QUICK, baselines=(program, program)))
    model = "qwen3_vl"
    programs = [f"{each}: llama.cpp{number}" for each in (model, f"{model} (2)") for number in ("", " (2)")]
    assert [entrant.name for entrant in made.entrants] == ["a/fp32", "b/fp32", *programs]
    assert made.references == {model: "a/fp32", f"{model} (2)": "b/fp32"}
    assert made.entrants[1].command.startswith(f"lensmith export {model} -o")


def test_encoders_are_compared_by_their_features(tmp_path: Path) -> None:
    ladder.need_torch()
    for precision in ("fp32", "int8"):
        job = prepare(arlow.CHECKPOINT, Options(precision=precision, revision="B"))
        export(job, tmp_path / precision, golden="never")
    assert encodes_alone(tmp_path / "fp32")
    made = by_name(compare_many([tmp_path / "fp32", tmp_path / "int8"], arlow.CHECKPOINT, QUICK))
    exact, rounded, reference = made["fp32"], made["int8"], made["PyTorch float32"]
    assert [entrant.failure for entrant in made.values()] == ["", "", ""]
    assert exact.feature_error is not None
    assert rounded.feature_error is not None
    assert exact.feature_error < 1e-4 < rounded.feature_error < 0.2
    assert reference.feature_error is None
    for entrant in made.values():
        assert entrant.measured is not None
        assert entrant.measured.decode_tokens_per_s is None
        assert entrant.measured.vision_ms.median > 0


def test_an_encoder_wants_pictures(tmp_path: Path, cli: Any) -> None:
    """Questions in words alone would measure nothing of it."""
    export(prepare(arlow.CHECKPOINT, Options(precision="int8", revision="B")), tmp_path / "b", golden="never")
    row = {"task": "read", "images": [], "prompt": "What?", "answer": "lion"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    ran = cli("compare", tmp_path / "b", "--fail-if", "size_mb>100", "--tasks", tmp_path / "tasks.jsonl")
    assert ran.code == 2
    assert "tasks.jsonl has no question with a picture, and" in ran.err
    assert ran.err.count("\n") == 1


def test_groups_are_by_checkpoint(folder: Path, tiny_bundle: Path) -> None:
    groups = grouped([folder / "fp32", tiny_bundle, folder / "int3"], [open_checkpoint(SOURCE)] * 2)
    assert [[bundle.path.name for bundle in group.bundles] for group in groups] == [
        ["fp32", "int3"],
        [tiny_bundle.name],
    ]
    assert [group.checkpoint is not None for group in groups] == [True, False]
    with pytest.raises(InputError, match="was not exported from"):
        grouped([folder / "fp32", tiny_bundle], [open_checkpoint(SOURCE)])
    with pytest.raises(InputError, match="a bundle is named twice"):
        grouped([folder / "fp32", folder / "int3" / ".." / "fp32"])


@pytest.mark.parametrize(
    ("wish", "checkpoint", "message"),
    [
        ("llama.cpp", True, "takes 2 paths, not 0; expected llama.cpp=MODEL.gguf,MMPROJ.gguf"),
        ("openvino-genai=nowhere", False, "needs .*nowhere, which is not there"),
        ("openvino-genai=.@nowhere", False, "is to run by nowhere, which is no program"),
        ("bitsandbytes-nf5", True, "did you mean 'bitsandbytes-nf4'"),
        ("bitsandbytes-nf4", False, "name it with --against"),
        ("bitsandbytes-nf4", True, "needs bitsandbytes; run: pip install bitsandbytes"),
    ],
)
def test_unusable_baselines_are_told(
    wish: str, checkpoint: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    given = open_checkpoint(SOURCE) if checkpoint else None
    with pytest.raises(InputError, match=message):
        list(baselines.baseline_jobs([wish], {}, given))


def test_pytorch_in_four_bits_is_a_baseline(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = replace(QUICK, image=folder / "a.png", baselines=("bitsandbytes-nf4",))
    made = by_name(compare_many([folder / "fp32"], SOURCE, options))["PyTorch bitsandbytes-nf4"]
    assert (made.failure, made.is_bundle) == ("", False)
    assert "bitsandbytes-nf4" in made.engine
    assert made.agreement is not None
    assert 0 < made.agreement.kl_mean < 1


def test_conditions_give_exit_codes(cli: Any, folder: Path, tmp_path: Path) -> None:
    given = ("compare", folder / "fp32", folder / "int3", "--image", folder / "a.png", "--repeats", 1, "--threads", 1)
    ran = cli(*given, "--fail-if", "size_mb > 5", "--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md")
    assert ran.code == 1
    assert "--fail-if 'size_mb > 5' is true of fp32 (size_mb" in ran.err
    assert "int3" not in ran.err
    assert ran.out.splitlines()[-2:] == [str(tmp_path / "r.json"), str(tmp_path / "r.md")]
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert figures["int3"]["size_mb"] < 5 < figures["fp32"]["size_mb"]
    assert (tmp_path / "r.md").read_text().startswith("2 bundles: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fail-if", "size < 5"), "no figure 'size'"),
        (("--limit", "3", "--fail-if", "size_mb < 5"), "--limit counts"),
        (("--dtype", "fp32", "--fail-if", "size_mb < 5"), "--dtype is about a checkpoint"),
        ((), "needs something beside the bundle"),
    ],
)
def test_unusable_wishes_are_refused(cli: Any, folder: Path, options: tuple[str, ...], message: str) -> None:
    ran = cli("compare", folder / "fp32", *options)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


FAKE = """
class Figure:
    def __init__(self, mean): self.mean = mean
class Figures:
    def __init__(self, config): self.tokens = config["max_new_tokens"]
    def get_ttft(self): return Figure(120.0)
    def get_tpot(self): return Figure(25.0)
    def get_num_input_tokens(self): return 44
    def get_num_generated_tokens(self): return self.tokens
class Made:
    def __init__(self, config): self.texts, self.perf_metrics = ["lion"], Figures(config)
class VLMPipeline:
    def __init__(self, folder, device, **settings):
        assert (device, settings) == ("CPU", {"INFERENCE_NUM_THREADS": 1})
        self.timed = set()
    def generate(self, prompt, images, generation_config):
        assert images[0].shape[0] == 1 and images[0].shape[3] == 3
        if "ignore_eos" in generation_config:  # a picture that is known would come from the cache of prefixes
            assert images[0].tobytes() not in self.timed
            self.timed.add(images[0].tobytes())
        return Made(generation_config)
def GenerationConfig(**settings): return settings
"""


def test_another_program_runs_by_its_own_python(folder: Path, tmp_path: Path) -> None:
    """Here OpenVINO GenAI is a stand-in that always says "lion", 25 ms a token."""
    (tmp_path / "openvino_genai.py").write_text(FAKE)
    (tmp_path / "resource.py").write_text("raise ImportError('as on Windows')")
    (tmp_path / "openvino.py").write_text("def Tensor(array): return array")
    info = tmp_path / "openvino_genai-9.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openvino-genai\nVersion: 9.1\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    wish = f"openvino-genai={folder}@{python}"
    options = replace(QUICK, image=folder / "a.png", tasks=folder / "tasks.jsonl", baselines=(wish,))
    other = by_name(compare_many([folder / "int3"], None, options))["openvino-genai"]
    assert (other.failure, other.engine, other.is_bundle) == ("", "openvino-genai, openvino-genai 9.1", False)
    assert other.measured is not None
    assert other.measured.decode_tokens_per_s is not None
    assert other.measured.decode_tokens_per_s.median == pytest.approx(40)
    assert (other.measured.first_token_ms, other.measured.prompt_tokens) == (120, 44)
    assert not other.measured.in_parts
    assert [task.mean for task in other.tasks] == [1.0]
    assert other.agreement is None
    assert 10_000_000 < other.measured.peak_memory_bytes < 1 << 31
