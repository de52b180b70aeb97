"""Qwen3.5 without its vision encoder (Qwen3_5ForCausalLM): bundles that answer as transformers and take no images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.calibration.calibrated_export import calibrated
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.calibration.samples.builtin.kinds import BuiltinSamples, Ways
from lensmith.calibration.samples.calibration_samples import case_key
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.evidence.constants import of_modules
from lensmith.exporters.evidence.reference import Reference
from lensmith.exporters.evidence.torch_loading import import_torch
from lensmith.exporters.families.qwen3_5.draft_reference import DraftReference
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.engines.llamacpp.header import read_gguf
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.media.frames import VideoLimits
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.targets.errors import InputError
from safetensors.numpy import save_file

from tests.helpers import ladder
from tests.helpers.extras import Ran, load
from tests.helpers.mtp_reference import assert_drafts
from tests.helpers.prequantized import VARIANTS, quantized_copy
from tests.paths import TINY

BASE = TINY / "qwen3_5"
IMAGE = TINY / "heldout" / "images" / "0001.png"
QUESTIONS = ("What word is written?", "Count the discs. " * 30, "Name three colours: rot, grün …")
LOGITS = 1e-4


def text_model(folder: Path, rename: Callable[[str], str] = lambda name: name, *, vision: bool = False) -> Path:
    """The decoder of the trained model as a checkpoint of its own; `vision` leaves the encoder in its files."""
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*preprocessor*", "*.safetensors"))
    config = json.loads((BASE / "config.json").read_text())
    text = config["text_config"] | {"architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(text))
    tensors = {name: t.raw() for name, t in open_checkpoint(BASE).tensors.items() if vision or ".visual." not in name}
    save_file({rename(name): values for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def plain(name: str) -> str:
    """As transformers saves it."""
    return name.replace("model.language_model.", "model.")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ladder.Pair:
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("text")
    return ladder.compile_pair(text_model(folder / "source", plain), folder / "bundle")


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_of_transformers(pair: ladder.Pair, question: str) -> None:
    assert type(pair.reference.model).__name__ == "Qwen3_5ForCausalLM"
    messages = [{"role": "user", "content": question}]
    assert relative_error(*pair.all_logits(messages)) < LOGITS
    theirs = pair.reference.greedy(pair.theirs(messages), 24, ignore_eos=True).ids
    answer = pair.model.generate(messages, GenerationOptions(24, ignore_eos=True))
    text = "".join(answer)
    assert text == pair.model.prompts.tokenizer.decode(theirs)


def test_modules_without_images_are_those_of_the_decoder(tmp_path: Path) -> None:
    ladder.need_torch()
    job, whole = prepare(text_model(tmp_path / "text", plain), Options()), prepare(BASE, Options())
    ours, theirs = (
        of_modules(each.family.modules(each.checkpoint, each.spec), import_torch()[0], each.family.prefixes)["decoder"]
        for each in (job, whole)
    )
    assert (ours.epsilons, ours.l2) == (theirs.epsilons, theirs.l2)
    assert ours.turns is not None
    assert theirs.turns is not None
    assert np.array_equal(ours.turns, theirs.turns)
    assert ours.turns.shape == (3, 8)


def test_drafts_are_those_of_the_whole_model(pair: ladder.Pair, tmp_path: Path) -> None:
    """The draft head lies beside the decoder; transformers has none, so the reference is that of the whole model."""
    whole = ladder.compile_pair(BASE, tmp_path / "bundle")
    messages = [{"role": "user", "content": QUESTIONS[1]}]
    assert_drafts(pair.model, DraftReference(whole.reference), whole.theirs(messages), LOGITS)


@pytest.mark.parametrize(
    ("rename", "vision"),
    [(lambda name: name, False), (lambda name: name, True), (lambda name: plain(name).removeprefix("model."), False),
     (lambda name: f"base_model.model.{plain(name)}", False)],
)  # fmt: skip
def test_names_and_whole_checkpoints(rename: Callable[[str], str], vision: bool, tmp_path: Path) -> None:
    """Also those of the whole model, whose encoder is then named as dropped."""
    job = prepare(text_model(tmp_path / "source", rename, vision=vision), Options())
    expected = prepare(text_model(tmp_path / "plain", plain), Options())
    assert [graph.name for graph in job.graphs] == ["decoder", "mtp"]
    assert [s.name for g in job.graphs for s in g.sources] == [s.name for g in expected.graphs for s in g.sources]
    dropped = job.family.dropped(job.checkpoint, job.spec)
    assert bool(dropped) == vision
    assert set(dropped.values()) <= {"model_type qwen3_5_text has no vision encoder"}


def test_images_are_refused_with_one_sentence(pair: ladder.Pair) -> None:
    picture: dict[str, Any] = {"type": "image", "image": str(IMAGE)}
    clip: dict[str, Any] = {"type": "video", "video": [str(IMAGE)] * 4}
    for part in (picture, clip):
        with pytest.raises(InputError, match="takes text alone, no images or videos") as error:
            list(pair.model.generate([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="takes text alone"):
        load(pair.model.bundle.path, max_pixels=65536)
    for limits in ({"image_limits": ImageLimits()}, {"video_limits": VideoLimits()}):
        with pytest.raises(InputError, match="no effect on a model that takes text alone; leave them out"):
            load(pair.model.bundle.path, **limits)
    for limit in ("min_pixels", "max_pixels", "max_video_pixels"):
        with pytest.raises(InputError, match="takes no images; leave it out"):
            pair.model.ask("?", **{limit: 65536})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes no images; leave it out"):
        prepare(pair.job.checkpoint.path, Options(max_pixels=65536))


def test_commands(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """Plan, export with traces, inspect, verify and run; what needs images says so."""
    ladder.need_torch()
    source, bundle = text_model(tmp_path / "source", plain), tmp_path / "bundle"
    assert "vision" not in cli("plan", source).out.lower()
    assert cli("export", source, "-o", bundle, "--golden", "always").code == 0
    assert "text only" in cli("verify", bundle).out
    shown = json.loads(cli("inspect", bundle, "--json").out)
    assert (shown["family"], sorted(shown["graphs"]), shown["image"]) == (
        "qwen3_5_text", ["decoder", "mtp"], {"kind": "none"},
    )  # fmt: skip
    assert cli("run", bundle, QUESTIONS[0]).code == 0
    for wish in (("--image", IMAGE), ("--max-pixels", "65536")):
        refused = cli("run", bundle, QUESTIONS[0], *wish)
        assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_gguf_has_one_file(tmp_path: Path) -> None:
    """What llama.cpp loads without a projector; with it installed, the answer is that of ONNX Runtime."""
    pytest.importorskip("gguf")
    source = text_model(tmp_path / "source", plain)
    bundle = export(prepare(source, Options(format="gguf", precision="f32")), tmp_path / "bundle", golden="never")
    assert [name for name in bundle.content["files"] if name.endswith(".gguf")] == ["model.gguf"]
    whole = export(prepare(BASE, Options(format="gguf", precision="f32")), tmp_path / "whole", golden="never")
    one, other = (read_gguf(b.file("model.gguf")).tensors for b in (bundle, whole))
    assert {name: entry.shape for name, entry in one.items()} == {name: entry.shape for name, entry in other.items()}
    pytest.importorskip("llama_cpp")
    plain_bundle = export(prepare(source, Options(precision="fp32")), tmp_path / "onnx", golden="never")
    texts = ["".join(load(b.path, threads=1).ask(QUESTIONS[0])) for b in (bundle, plain_bundle)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["gptq asymmetric", "nf4"])
def test_quantized_weights_answer_as_the_floats_that_they_stand_for(name: str, tmp_path: Path) -> None:
    """Also those of the draft head; transformers runs the floats."""
    ladder.need_torch()
    source = text_model(tmp_path / "source", plain)
    made = quantized_copy(source, tmp_path / "made", VARIANTS[name], lambda _: True)
    stored, floats = (open_checkpoint(made / copy).tensors for copy in ("stored", "floats"))
    assert stored.keys() == floats.keys()
    for tensor in stored:
        np.testing.assert_array_equal(stored[tensor].numpy(), floats[tensor].numpy(), tensor)
    model = ladder.compile_pair(made / "stored", tmp_path / "bundle").model
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    reference, request = Reference(made / "floats", threads=1), model.prepare(messages)
    ours = model.prefill(request, num_logits=len(request.prompt), reuse=False).copy()
    assert relative_error(ours, reference.logits(request)) < LOGITS
    answer = model.generate(messages, GenerationOptions(24, ignore_eos=True))
    answer.read()
    assert answer.ids == reference.greedy(request, 24, ignore_eos=True).ids


@pytest.mark.parametrize("options", [Options(format="tensorrt", target="rtx-40"), Options(target="cuda")])
def test_graphs_for_gpus(options: Options, tmp_path: Path) -> None:
    job = prepare(text_model(tmp_path / "source", plain), options)
    assert np.array_equal([graph.name for graph in job.graphs], ["decoder", "mtp"])


TASKS = (TINY / "heldout_long" / "tasks.jsonl").read_text().splitlines()
SAMPLES = [task for task in map(json.loads, TASKS) if task["task"] == "copy"][:6]
CALIBRATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mse": ({"kv_cache": "int8"}, {}), "descent": ({"precision": "int3"}, {"max_kl": 5.0}),
    "imatrix": ({"format": "gguf", "precision": "q4_k_m"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("method", CALIBRATED)
def test_text_samples_calibrate(pair: ladder.Pair, tmp_path: Path, method: str) -> None:
    """Bits by a limit, and int8 caches; nothing of it sees a picture."""
    wishes, limits = CALIBRATED[method]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(sample) for sample in SAMPLES))
    if method == "imatrix":
        pytest.importorskip("llama_cpp")
    options = CalibrationOptions(method=method, samples=tmp_path / "samples.jsonl", limit=4, only_samples=True,
                                 threads=1, **limits)  # fmt: skip
    job = prepare(pair.job.checkpoint.path, Options(**wishes))
    bundle = export(job, tmp_path / "bundle", golden="never", integers=calibrated(options))
    made = bundle.content["evidence"]["calibration"]
    assert (made["samples"]["pictures"], made["samples"]["image_tokens"]) == (0, 0)
    if method != "imatrix":
        judged = made["judgement"]
        assert set(judged["float"]["kl"]) == {"text", "answers"}
        assert all(0 < value < 1 for name in ("nearest", "calibrated") for value in judged[name]["kl"].values())
    assert load(bundle.path, threads=1).ask(QUESTIONS[0], max_new_tokens=3).read()


def test_built_in_samples_of_a_text_model_have_no_pictures(tmp_path: Path) -> None:
    cases = list(islice(BuiltinSamples(tmp_path / "pictures", 0, Ways(pictures=False)).cases(), 60))
    assert not any(case.images for case in cases)
    assert len({case_key(case) for case in cases}) > 50
    assert not list((tmp_path / "pictures").iterdir())


def test_samples_with_pictures_are_refused(pair: ladder.Pair, tmp_path: Path) -> None:
    rows = [{**sample, "images": [str(IMAGE)]} for sample in SAMPLES]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = CalibrationOptions(method="mse", samples=tmp_path / "samples.jsonl", limit=4)
    with pytest.raises(InputError, match="takes text alone, no images"):
        export(
            prepare(pair.job.checkpoint.path, Options()),
            tmp_path / "bundle",
            golden="never",
            integers=calibrated(options),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
