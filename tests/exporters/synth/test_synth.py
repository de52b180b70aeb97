"""Synthesized checkpoints: the right tensors and sizes, the same for the same seed, loadable by transformers."""

from __future__ import annotations

import errno
import importlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import Checkpoint, open_checkpoint
from lensmith.exporters.synth import making as module
from lensmith.exporters.synth.making import ARCHITECTURES, small_files, synth
from lensmith.exporters.synth.synth_layouts import SynthTensor
from lensmith.exporters.synth.synth_tokenizer import byte_alphabet, vocabulary
from lensmith.exporters.synth.synth_weights import (
    _row_scales,
    blocks,
    encode,
    file_order,
    header_of,
)
from lensmith.runtimes.storage.files import hash_file
from lensmith.targets.errors import InputError
from tokenizers import Tokenizer, pre_tokenizers

from tests.helpers import hf

QWEN3_VL = "qwen3-vl-2b"
LAYERS = "model.language_model.layers."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(synth(QWEN3_VL, tmp_path_factory.mktemp("synth") / "tiny", tiny=True))


def full_tensors(name: str) -> list[SynthTensor]:
    architecture = ARCHITECTURES[name]
    return file_order(architecture.tensors(small_files(architecture, tiny=False)))


# Published sizes: model.safetensors of Qwen3-VL-2B-Instruct, and of Qwen3.5-2B, whose header lacks our 32 bytes of
# metadata; parameters of the others from transformers (and of Qwen3.5-4B with its multi-token prediction).
# Arlow Vision is published with 3.2 GB in 16 bits.
@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "size"),
    [
        (QWEN3_VL, 625, 2_127_532_032, 4_255_140_312),
        ("tarn-2b", 632, 2_274_069_824, 4_548_221_488 + 32),
        ("nemotron-4b", 738, 4_659_865_088, None),
        ("vqwen3-4b", 793, 4_335_155_712, None),
        ("arlow-vision", 603, 1_590_658_560, None),
    ],
)
def test_full_size_is_the_published_one(name: str, tensors: int, parameters: int, size: int | None) -> None:
    """Nothing is written here."""
    made = full_tensors(name)
    assert len({tensor.name for tensor in made}) == len(made) == tensors
    assert sum(math.prod(tensor.shape) for tensor in made) == parameters
    assert size in (None, len(header_of(made)) + sum(tensor.nbytes for tensor in made))


def test_full_size_configuration_is_the_real_one() -> None:
    files = small_files(ARCHITECTURES[QWEN3_VL], tiny=False)
    assert files["config.json"]["text_config"]["vocab_size"] == 151_936
    tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert tokenizer.get_vocab_size() == 151_669
    for content, token in (("<|endoftext|>", 151643), ("<|image_pad|>", 151655), ("</think>", 151668)):
        assert tokenizer.token_to_id(content) == token
        assert tokenizer.encode(f"a{content}b").ids[1] == token
    for token in range(0, 151_669, 7):
        assert tokenizer.decode([token], skip_special_tokens=False)


@pytest.mark.parametrize("name", ["tarn-2b", "nemotron-4b", "vqwen3-4b"])
def test_tiny_of_each_architecture_loads_in_transformers(name: str, tmp_path: Path) -> None:
    hf.import_transformers()
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        synth(name, tmp_path / "tiny", tiny=True), dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(65, 75)[None]).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.5  # neither flat nor collapsed


def test_large_checkpoints_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_checkpoint(synth("vqwen3-4b", tmp_path / "whole", tiny=True))
    assert not list(whole.path.glob("*.index.json"))
    monkeypatch.setattr("lensmith.exporters.synth.synth_weights.SHARD_BYTES", 4_000_000)
    seen: list[int] = []
    sharded = open_checkpoint(
        synth("vqwen3-4b", tmp_path / "sharded", tiny=True, progress=lambda done, total: seen.extend((done, total)))
    )
    assert seen[::2] == sorted(seen[::2])
    assert {seen[-2], *seen[1::2]} == {whole.nbytes}
    index = json.loads((sharded.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == whole.nbytes
    assert len(list(sharded.path.glob("model-0000?-of-00003.safetensors"))) == 3
    assert sharded.tensors.keys() == whole.tensors.keys()
    for tensor in ("model.language_model.embed_tokens.weight", "model.multi_modal_projector.linear_2.bias"):
        np.testing.assert_array_equal(sharded.tensor(tensor).numpy(), whole.tensor(tensor).numpy())


def test_tiny_loads_in_transformers_and_runs(tiny: Checkpoint) -> None:
    hf.import_transformers()
    torch = importlib.import_module("torch")
    models = importlib.import_module("transformers.models.qwen3_vl.modeling_qwen3_vl")
    model, info = models.Qwen3VLForConditionalGeneration.from_pretrained(
        tiny.path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = [tiny.config["vision_start_token_id"], *[tiny.config["image_token_id"]] * 4, 65, 66]
    with torch.no_grad():
        logits = model.eval()(
            input_ids=torch.tensor([ids]), pixel_values=torch.randn(16, 1536), image_grid_thw=torch.tensor([[1, 4, 4]]),
            mm_token_type_ids=torch.tensor([[0, 1, 1, 1, 1, 0, 0]]),
        ).logits  # fmt: skip
    assert logits.shape == (1, 7, tiny.config["text_config"]["vocab_size"])
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.5  # neither flat nor collapsed


def test_tiny_ids_agree_with_its_tokenizer(tiny: Checkpoint) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer_path))
    assert tiny.config["image_token_id"] == tokenizer.token_to_id("<|image_pad|>") == 2048 + 12
    assert tiny.config["text_config"]["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
    assert tiny.generation_config["eos_token_id"] == [2050, 2048]
    assert tiny.tokenizer_config["added_tokens_decoder"]["2060"]["content"] == "<|image_pad|>"
    assert 0 <= tiny.config["text_config"]["vocab_size"] - tokenizer.get_vocab_size() < 64
    assert tiny.config["text_config"]["vocab_size"] % 64 == 0
    assert (tiny.license, tiny.chat_template is None) == ("apache-2.0", False)
    text = "Describe the image: Größe 12 日本 😀\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer.encode(" the image").ids] == [" the", " image"]


def token_ids(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Where a configuration names tokens, and their ids."""
    if isinstance(values, dict | list):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from token_ids(value, f"{key}/{name}")
    elif "token_i" in key and isinstance(values, int):
        yield key, values


@pytest.mark.parametrize("name", ["tarn-2b", "vqwen3-4b"])
def test_tiny_configurations_name_the_tokens_of_the_real_ones(name: str) -> None:
    """Text for text, wherever a file has the id of a token."""
    real, small = (small_files(ARCHITECTURES[name], tiny=tiny) for tiny in (False, True))
    texts, fewer = ({token["id"]: token["content"] for token in files["tokenizer.json"]["added_tokens"]}
                    for files in (real, small))  # fmt: skip
    for file in real.keys() - {"tokenizer.json"}:
        pairs = list(zip(token_ids(real[file]), token_ids(small[file]), strict=True))
        assert pairs or "config" not in file or "token_id" not in json.dumps(real[file]), file
        for (place, token), (_, tiny) in pairs:
            assert fewer.get(tiny) == texts.get(token), (file, place)
        listed = [files[file].get("added_tokens_decoder", {}) for files in (real, small)]
        assert [texts.get(int(token)) for token in listed[0]] == [fewer.get(int(token)) for token in listed[1]]


def test_bytes_are_spelled_as_the_library_spells_them() -> None:
    assert byte_alphabet() == sorted(byte_alphabet())
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("size", [256, 1000, 2048, 9000])
def test_vocabulary_is_complete(size: int) -> None:
    vocab, rules = vocabulary(size)
    assert list(vocab.values()) == list(range(size))
    for rule in rules:
        left, right = rule.split(" ")
        assert {left, right, left + right} <= vocab.keys()


def test_same_seed_same_bytes(tiny: Checkpoint, tmp_path: Path) -> None:
    again = synth(QWEN3_VL, tmp_path / "again", tiny=True)
    assert {p.name: hash_file(p) for p in again.iterdir()} == {p.name: hash_file(p) for p in tiny.path.iterdir()}
    other = open_checkpoint(synth(QWEN3_VL, tmp_path / "other", tiny=True, seed=1))
    name = f"{LAYERS}0.mlp.up_proj.weight"
    assert not np.array_equal(other.tensor(name).numpy(), tiny.tensor(name).numpy())


def test_weights_have_the_features_of_trained_ones(tiny: Checkpoint) -> None:
    down = [tiny.tensor(f"{LAYERS}{i}.mlp.down_proj.weight").numpy() for i in range(4)]
    assert max(np.abs(w.mean(axis=1)).max() for w in down) < 1e-3  # rows sum to zero
    strongest = [set(np.argsort(w.std(axis=1))[-2:]) for w in down]
    assert all(channels == strongest[0] for channels in strongest)  # outlier channels are those of every layer
    assert not np.array_equal(down[0], down[1])
    assert tiny.tensor("model.language_model.norm.weight").numpy().mean() == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("columns", [256, 1024, 4096])
def test_narrow_matrices_are_as_strong_as_wide_ones(columns: int) -> None:
    """0.02 from 1024 inputs on, and queries and keys twice that; each row has a scale of its own."""
    (make,) = blocks(SynthTensor("layer.qkv.weight", (192, columns), "qkv"), 0)
    scales = make().std(axis=1)
    expected = 0.02 * max(1, math.sqrt(1024 / columns))
    for rows, gain in ((scales[:64], 2), (scales[64:128], 2), (scales[128:], 1)):
        assert np.median(rows) == pytest.approx(gain * expected, rel=0.15)
        assert rows.std() / rows.mean() == pytest.approx(0.25, abs=0.1)


def test_blocks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensmith.exporters.synth.synth_weights.BLOCK", 1000)
    tensor = SynthTensor("x", (70, 30), "residual")
    parts = [make() for make in blocks(tensor, 0)]
    assert [part.shape for part in parts] == [(33, 30), (33, 30), (4, 30)]
    assert not np.allclose(parts[0], parts[1])
    np.testing.assert_allclose(np.concatenate(parts).mean(axis=1), 0, atol=1e-6)
    channels = np.concatenate(parts).std(axis=1) / _row_scales(tensor, 0)[:, 0]
    assert channels.min() > 0.5  # each row has the strength that is its own, whatever block it is in
    assert channels.max() < 3.5
    other, again = (next(blocks(tensor, seed))() for seed in (1, 0))
    assert np.array_equal(again, parts[0])
    assert not np.allclose(other, parts[0])


def test_bfloat16_rounds_to_nearest() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    np.testing.assert_array_equal(
        encode(values.copy(), "BF16").view(ml_dtypes.bfloat16), values.astype(ml_dtypes.bfloat16)
    )


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synth(QWEN3_VL, tmp_path / "out", tiny=True, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == open_checkpoint(tmp_path / "out").nbytes


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no architecture 'qwen3-vl' to synthesize; did you mean 'qwen3-vl-2b'"):
        synth("qwen3-vl", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InputError, match="used exists and is not a checkpoint of lensmith synth; choose another"):
        synth(QWEN3_VL, tmp_path / "used")
    made = synth(QWEN3_VL, tmp_path / "made", tiny=True)
    with pytest.raises(InputError, match="made is a checkpoint of lensmith synth already; replace it with --force"):
        synth(QWEN3_VL, made, tiny=True)
    synth(QWEN3_VL, made, tiny=True, seed=1, force=True)
    assert "(seed 1) in the architecture of qwen3-vl-2b at tiny size" in (made / "README.md").read_text()
    shutil.rmtree(made)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    with pytest.raises(InputError, match=r"needs 4\.27 GB but its disk has 1\.00 GB free"):
        synth(QWEN3_VL, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (OSError(errno.EIO, "Input/output error"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException]
) -> None:
    def fail(folder: Path, *rest: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, "write_checkpoint", fail)
    with pytest.raises(expected):
        synth(QWEN3_VL, tmp_path / "deep" / "out", tiny=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert synth(QWEN3_VL, tmp_path / "deep" / "out", tiny=True).is_dir()
