"""GGUF bundles on llama.cpp: the answers of PyTorch, exact tokens and pixels, turns reused, damaged files refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes import Model, user_message
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.engines.llamacpp.gguf_check import check_decoder, check_vision
from lensmith.runtimes.evidence.replay import divergence, relative_error
from lensmith.runtimes.evidence.traces import log_sum
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.media.images import ImageSpec, preprocess
from lensmith.runtimes.media.pixels import to_frames
from lensmith.runtimes.media.resize import resize_bicubic
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers.extras import Ran, latest, load, run_without
from tests.paths import TINY

pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
PICTURES = sorted((TINY / "heldout" / "images").glob("*.png"))
FAMILIES = ("qwen3_vl", "qwen3_5")
# Float32 files. Text: the order of summation alone. Features of images: llama.cpp rounds pixels and GELUs to float16,
# 5e-4 relative (test_llamacpp_rounding.py); decoders pass that on.
TEXT_ERROR, VISION_ERROR, IMAGE_ERROR, IMAGE_KL = 1e-5, 1e-3, 2e-3, 1e-4
# Float16 files: weights, KV cache and the inputs of products have 11 bits.
HALF_ERROR, HALF_KL = 0.03, 0.01


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Float32 bundles of the trained models, with golden traces."""
    pytest.importorskip("transformers", reason="needs lensmith[torch]")
    return {name: built(name, tmp_path_factory.mktemp(name) / "bundle", "f32") for name in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Bundle:
    return bundles[request.param]


def built(name: str, out: Path, precision: str) -> Bundle:
    return export(prepare(TINY / name, Options(format="gguf", precision=precision)), out, golden="always")


def figures(bundle: Bundle, ending: str) -> list[float]:
    """The worst of each figure of the golden traces whose name has this ending."""
    found = bundle.content["evidence"]["golden"]["figures"]
    return [value for name, value in found.items() if name.partition("[")[0].endswith(ending)]


def test_float32_files_answer_as_pytorch_does(bundle: Bundle) -> None:
    assert max(figures(bundle, "features_error")) < VISION_ERROR
    assert max(figures(bundle, "logits_error")) < IMAGE_ERROR
    assert max(figures(bundle, "_kl")) < IMAGE_KL
    assert min(figures(bundle, "_agreement")) == 1.0
    text = [row for row in verify(bundle).rows if row.case == "text only" and row.figure.endswith("_error")]
    assert text
    assert all(row.value < TEXT_ERROR for row in text)


def test_float16_files_answer_as_float32_files_do(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    half = export(
        prepare(TINY / "qwen3_vl", Options(format="gguf", precision="f16")), tmp_path / "half", golden="never"
    )
    exact, rounded = load(bundles["qwen3_vl"].path, threads=1), load(half.path, threads=1)
    for picture in PICTURES[:4]:
        messages = [user_message("Describe the picture.", [picture])]
        one, other = (model.prefill(model.prepare(messages), num_logits=8) for model in (exact, rounded))
        assert relative_error(other, one) < HALF_ERROR
        expected, found = (rows - log_sum(rows)[:, None] for rows in (one, other))
        assert max(map(divergence, expected, found)) < HALF_KL


def ask(model: Model, messages: list[dict[str, object]]) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were in the cache already."""
    answer = model.generate(messages, model.default_options(max_new_tokens=12))
    return answer.read(), answer.timings.reused_tokens


def test_later_turns_reuse_the_cache(bundle: Bundle) -> None:
    """Also where a new image comes in a later turn, and where the conversation is another one from its image on."""
    first = [user_message("What word is written?" * 8, [PICTURES[0]])]
    model = load(bundle.path, threads=1)
    text, reused = ask(model, first)
    assert reused == 0
    reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    for later in ([user_message("How many shapes are there?", [PICTURES[1]])], [user_message("And the colours?")]):
        conversation = [*first, reply, *later]
        found, reused = ask(model, conversation)
        assert reused > 60
        assert found == ask(load(bundle.path, threads=1), conversation)[0]
    other = [user_message("What word is written?" * 8, [PICTURES[2]])]
    found, reused = ask(model, other)
    assert reused < 60
    assert found == ask(load(bundle.path, threads=1), other)[0]


def test_long_batches_are_those_of_short_ones(bundle: Bundle) -> None:
    """Hundreds of tokens at once, whose arrays are too large to be found where they were by chance."""
    model = load(bundle.path, threads=1, context=2048)
    ids = np.tile(model.prompts.tokenizer.encode("Read all the words.").ids, 100).astype(np.int64)[:600]
    positions = text_positions(len(ids), 0)
    whole = latest(model).run(Step(ids, positions))
    model.forget()
    for begin in range(0, len(ids), 50):
        part = latest(model).run(Step(ids[begin : begin + 50], positions[:, begin : begin + 50]))
    assert relative_error(whole, part) < 10 * TEXT_ERROR


def test_patches_become_the_pixels_they_were_cut_from() -> None:
    """Every byte value, in an image whose sides differ and in two frames that differ."""
    spec = ImageSpec(patch_size=8, min_pixels=256, max_pixels=1 << 20)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    patches, grid = preprocess(Image.fromarray(pixels), spec)
    found = to_frames(patches, grid, spec)
    np.testing.assert_array_equal(found, np.stack([[pixels, pixels]]))


def test_pixels_are_those_of_the_processor(bundle: Bundle) -> None:
    model = load(bundle.path, threads=1)
    image = open_image(PICTURES[3])
    assert isinstance(model.image_spec, ImageSpec)
    patches, grid = preprocess(image, model.image_spec)
    planes = np.moveaxis(np.asarray(image), -1, 0)
    side = model.image_spec.patch_size
    expected = np.moveaxis(resize_bicubic(planes, grid[1] * side, grid[2] * side), 0, -1)
    np.testing.assert_array_equal(to_frames(patches, grid, model.image_spec)[0, 0], expected)


def test_nothing_is_printed(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    ask(load(bundle.path, threads=1), [user_message("What is this?", [PICTURES[0]])])
    assert capfd.readouterr() == ("", "")


def test_commands(bundles: dict[str, Bundle], cli: Callable[..., Ran]) -> None:
    path = bundles["qwen3_vl"].path
    ran = cli("run", path, "What word is written?", "--image", PICTURES[0], "--threads", 1)
    assert ran.code == 0, ran.err
    assert ran.out.strip()
    assert cli("inspect", path).code == 0
    assert cli("run", path, "Hi", "--context", 4).code == 2


def test_comparisons_name_the_engine(bundles: dict[str, Bundle]) -> None:
    from lensmith.exporters.comparing.runners import BundleRunner

    assert BundleRunner(bundles["qwen3_vl"].path, threads=1).engine.startswith("llama.cpp of llama-cpp-python 0.")


def test_the_extra_is_named(bundles: dict[str, Bundle]) -> None:
    ran = run_without(
        ("llama_cpp",),
        "from lensmith.cli import main; main(sys.argv[1:])",
        "run",
        bundles["qwen3_vl"].path,
        "Hi",
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "lensmith[gguf]" in ran.stderr


def resealed(bundle: Bundle, out: Path, name: str, data: bytes) -> Path:
    """A copy of a bundle with other content of a file, and a manifest that does not tell."""
    shutil.copytree(bundle.path, out, dirs_exist_ok=True)
    (out / name).write_bytes(data)
    manifest = json.loads((out / "lensmith.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / "lensmith.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def edited(path: Path, key: str, value: int) -> bytes:
    """A GGUF file with another number (uint32, float32 or array of int32) behind a key."""
    data = bytearray(path.read_bytes())
    field = gguf.GGUFReader(path).fields[key]
    part = field.parts[field.data[0]]
    start = field.offset + sum(p.nbytes for p in field.parts[: field.data[0]])
    data[start : start + part.nbytes] = np.array([value], part.dtype).tobytes()
    return bytes(data)


WRONG = {
    "qwen3vl.attention.head_count": 0,
    "qwen3vl.attention.head_count_kv": 3,
    "qwen3vl.embedding_length": 64,
    "qwen3vl.block_count": 6,
    "qwen3vl.rope.dimension_sections": -7,
    "qwen3vl.n_deepstack_layers": 9,
    "qwen3vl.attention.layer_norm_rms_epsilon": 0,
    "qwen3vl.context_length": 0,
    "tokenizer.ggml.eos_token_id": 100000,
}


@pytest.mark.parametrize("key", WRONG)
def test_metadata_that_does_not_fit_is_refused(key: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(edited(bundles["qwen3_vl"].file("model.gguf"), key, WRONG[key]))
    with pytest.raises(InputError, match="export the bundle again"):
        check_decoder(path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off in the header": lambda data: data[:1000],
    "cut off in the tensors": lambda data: data[:-100],
    "longer": lambda data: data + bytes(64),
    "another magic": lambda data: b"GGML" + data[4:],
    "another version": lambda data: data[:4] + bytes([2]) + data[5:],
    "byte order": lambda data: data[:4] + data[4:8][::-1] + data[8:],
    "countless tensors": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "countless values": lambda data: data[:16] + b"\xff" * 8 + data[24:],
    "a text without end": lambda data: data[:24] + b"\xff" * 8 + data[32:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.gguf", "mmproj.gguf"])
def test_damaged_files_are_refused(
    name: str, damage: str, bundles: dict[str, Bundle], tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    bundle = bundles["qwen3_vl"]
    path = resealed(bundle, tmp_path / "bundle", name, DAMAGES[damage](bundle.file(name).read_bytes()))
    ran = cli("run", path, "Hi")
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert name in ran.err


def test_changed_files_are_refused_by_their_hash(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    path = shutil.copytree(bundles["qwen3_vl"].path, tmp_path / "bundle")
    data = bytearray((path / "model.gguf").read_bytes())
    data[-1] ^= 1
    (path / "model.gguf").write_bytes(data)
    with pytest.raises(InputError, match="was changed"):
        open_bundle(path)


FUZZ = """
import random, sys
from pathlib import Path
from lensmith.runtimes import load
from lensmith.targets.errors import LensmithError
from tests.runtimes.engines.test_llamacpp import flipped, resealed
from lensmith.runtimes.bundle.opening import open_bundle
bundle, out, name, picture = open_bundle(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
answered = refused = 0
for data in flipped(bundle.file(name), random.Random(name), 40):
    try:
        model = load(resealed(bundle, out, name, data), threads=1, context=256)
        options = model.default_options(max_new_tokens=2)
        model.ask("Hi", [picture], options).read()
        answered += 1
    except LensmithError:
        refused += 1
print(answered, refused)
"""


def flipped(path: Path, rng: object, count: int) -> list[bytes]:
    """Copies of a GGUF file, each with one byte changed outside the data of its tensors."""
    reader, data = gguf.GGUFReader(path), path.read_bytes()
    places = list(range(24))
    for field in reader.fields.values():
        places += range(field.offset, field.offset + min(200, sum(part.nbytes for part in field.parts)))
    for tensor in reader.tensors:
        places += range(tensor.field.offset, tensor.field.offset + sum(part.nbytes for part in tensor.field.parts))
    copies = []
    for _ in range(count):
        at, value = rng.choice(places), rng.randrange(256)  # type: ignore[attr-defined]
        copies.append(data[:at] + bytes([value]) + data[at + 1 :])
    return copies


@pytest.mark.parametrize("name", ["model.gguf", "mmproj.gguf"])
def test_no_changed_byte_of_a_header_ends_the_process(name: str, bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FUZZ, bundle.path, tmp_path / "bundle", name, PICTURES[0]]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answered, refused = map(int, ran.stdout.split())
    assert answered + refused == 40
    assert refused > 20


def test_an_encoder_of_another_width_is_refused(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(InputError, match="128"):
        check_vision(bundles["qwen3_vl"].file("mmproj.gguf"), 256)
