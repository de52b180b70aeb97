"""LoRA adapters: merged as peft merges them, every tensor of them used, and everything else refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.checkpoint.safetensors_files import read_header
from lensmith.exporters.evidence.reference import Reference
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.spec import ModelSpec
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.targets.errors import InputError
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.helpers import hf
from tests.helpers.extras import Ran
from tests.helpers.lora_data import CASES, EXPECTED, FOLDER
from tests.helpers.prequantized import VARIANTS, decoder_only, quantized_copy
from tests.paths import TINY

BASE = TINY / "qwen3_vl"
PREFIX = "base_model.model.model.language_model."
DOWN, TABLE, HEAD = (
    f"model.language_model.{name}.weight" for name in ("layers.1.mlp.down_proj", "embed_tokens", "lm_head")
)
Floats = NDArray[np.float32]


def floats(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(scale=0.05, size=shape).astype(np.float32)


def adapter(folder: Path, tensors: dict[str, Floats], **config: Any) -> Path:
    """An adapter folder as peft writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tiny/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def pair(name: str, rows: int, columns: int, **parts: Floats) -> dict[str, Floats]:
    """Both matrices of a module, of rank 2, and more parts."""
    made = {"lora_A.weight": floats((2, columns), 1), "lora_B.weight": floats((rows, 2), 2), **parts}
    return {f"{name}.{end}": value for end, value in made.items()}


def down(**parts: Floats) -> dict[str, Floats]:
    return pair(f"{PREFIX}layers.1.mlp.down_proj", 128, 384, **parts)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_peft_merges(name: str) -> None:
    base, found = open_checkpoint(BASE).tensors, open_checkpoint(BASE, FOLDER / name).tensors
    expected = read_header(FOLDER / name / EXPECTED)
    assert list(found) == list(base)
    for key, tensor in found.items():
        if key not in expected:
            assert np.array_equal(tensor.numpy(), base[key].numpy()), key
            continue
        assert relative_error(tensor.numpy(), expected[key].numpy()) < 3e-7, key
        assert np.array_equal(tensor.rows(1, 3), tensor.numpy()[1:3]), key


# Settings without effect on an adapter that is trained.
OF_TRAINING = ("auto_mapping", "bias", "corda_config", "eva_config", "exclude_modules", "inference_mode",
               "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias", "lora_dropout", "lora_ga_config",
               "megatron_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size", "revision",
               "runtime_config", "target_modules", "task_type")  # fmt: skip


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / np.sqrt(2)),
        ({"alpha_pattern": {"down_proj": 10}}, 5.0),
        ({"alpha_pattern": {"proj": 10, "q_proj": 3}}, 2.0),  # patterns are whole parts of names
        ({"r": 7, "rank_pattern": {r"layers\.\d+\.mlp\.down_proj": 2}}, 2.0),
        ({"fan_in_fan_out": True}, 2.0),  # peft switches it off for linear layers
        ({"lora_alpha": -4}, -2.0),
        ({"alpha_pattern": {"down_proj": 10, r"mlp\.down_proj": 3}}, 5.0),  # the first counts
        ({"alpha_pattern": {"mlp": 10, "layers": 3}}, 2.0),  # they are ends of names
        ({"init_lora_weights": "Gaussian"}, 2.0),
        ({"use_qalora": False, "target_parameters": None, "something_new": []}, 2.0),  # nothing that is wished for
        (dict.fromkeys(OF_TRAINING, "x"), 2.0),
    ],
)
def test_scaling(config: dict[str, Any], scaling: float, tmp_path: Path) -> None:
    folder = adapter(tmp_path, down(), **config)
    base, found = open_checkpoint(BASE).tensor(DOWN).numpy(), open_checkpoint(BASE, folder).tensor(DOWN).numpy()
    product = (floats((128, 2), 2).astype(np.float64) @ floats((2, 384), 1)).astype(np.float32)
    assert np.array_equal(found, base + product * np.float32(scaling))


def test_strength_that_is_not_said(tmp_path: Path) -> None:
    """peft's own defaults: rank 8, alpha 8."""
    made = {"lora_A.weight": floats((8, 384), 1), "lora_B.weight": floats((128, 8), 2)}
    folder = adapter(tmp_path, {f"{PREFIX}layers.1.mlp.down_proj.{end}": value for end, value in made.items()})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "lora"}))
    base, found = open_checkpoint(BASE).tensor(DOWN).numpy(), open_checkpoint(BASE, folder).tensor(DOWN).numpy()
    product = (made["lora_B.weight"].astype(np.float64) @ made["lora_A.weight"]).astype(np.float32)
    assert np.array_equal(found, base + product)


@pytest.mark.parametrize(
    "start",
    ["base_model.model.model.language_model.", "model.language_model.", "base_model.model.language_model.model.",
     "base_model.model.model.", "base_model.model._orig_mod.model.language_model."],
)  # fmt: skip
@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_names_of_all_versions(start: str, family: str, tmp_path: Path) -> None:
    tensors = pair(f"{start}layers.0.self_attn.q_proj", 128, 128)
    named = {name.replace(".lora_A.", ".lora_A.default."): value for name, value in tensors.items()}
    named = {name.replace(".lora_B.", ".lora_B.default."): value for name, value in named.items()}
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    base = open_checkpoint(TINY / family).tensor(name).numpy()
    found = [open_checkpoint(TINY / family, adapter(tmp_path / folder, made)).tensor(name).numpy()
             for folder, made in (("plain", tensors), ("named", named))]  # fmt: skip
    assert not np.array_equal(found[0], base)
    assert np.array_equal(found[0], found[1])


def test_table_alone_leaves_the_head(tmp_path: Path) -> None:
    base = open_checkpoint(BASE).tensor(TABLE).numpy()
    tokens, width = base.shape
    tensors = {f"{PREFIX}embed_tokens.lora_embedding_A": floats((2, tokens), 1),
               f"{PREFIX}embed_tokens.lora_embedding_B": floats((width, 2), 2),
               f"{PREFIX}embed_tokens.base_layer.weight": base}  # fmt: skip
    folder = adapter(tmp_path / "a", tensors)
    found = open_checkpoint(BASE, folder).tensors
    product = (floats((2, tokens), 1).astype(np.float64).T @ floats((width, 2), 2).T).astype(np.float32)
    assert np.array_equal(found[TABLE].numpy(), base + product * np.float32(2))
    assert np.array_equal(found["lm_head.weight"].numpy(), base)
    assert np.array_equal(found[TABLE].rows(5, 9), found[TABLE].numpy()[5:9])
    spec = prepare(BASE, Options(), adapter=folder).spec
    assert isinstance(spec, ModelSpec)
    assert not spec.decoder.tied


def test_a_head_of_its_own_stays_when_the_table_changes(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    tensors = load_file(BASE / "model.safetensors")
    own = -open_checkpoint(BASE).tensor(TABLE).numpy()
    save_file({**tensors, "lm_head.weight": own}, tmp_path / "base" / "model.safetensors")
    folder = adapter(tmp_path / "a", {f"{PREFIX}embed_tokens.weight": own * 2}, modules_to_save=["embed_tokens"])
    found = open_checkpoint(tmp_path / "base", folder).tensors
    assert np.array_equal(found[TABLE].numpy(), own * 2)
    assert np.array_equal(found["lm_head.weight"].numpy(), own)


def test_head_alone_leaves_the_table(tmp_path: Path) -> None:
    base = open_checkpoint(BASE).tensor(TABLE).numpy()
    folder = adapter(tmp_path / "a", {"base_model.model.lm_head.weight": base + 1}, modules_to_save=["lm_head"])
    found = open_checkpoint(BASE, folder).tensors
    assert np.array_equal(found[TABLE].numpy(), base)
    assert np.array_equal(found["lm_head.weight"].numpy(), base + 1)


def test_whole_modules_of_older_versions(tmp_path: Path) -> None:
    name = "model.language_model.norm.weight"
    value = open_checkpoint(BASE).tensor(name).numpy() + 1
    folder = adapter(tmp_path, {f"{PREFIX}norm.modules_to_save.default.weight": value}, modules_to_save=["norm"])
    assert np.array_equal(open_checkpoint(BASE, folder).tensor(name).numpy(), value)


def test_adapter_of_a_quantized_base(tmp_path: Path) -> None:
    base = quantized_copy(BASE, tmp_path / "base", VARIANTS["packed 4 bits"], decoder_only)
    folder = adapter(tmp_path / "adapter", down())
    ours, theirs = (open_checkpoint(base / copy, folder).tensors[DOWN].numpy() for copy in ("stored", "floats"))
    assert np.array_equal(ours, theirs)
    job = prepare(base / "stored", Options(), adapter=folder)
    reasons = export(job, tmp_path / "bundle", golden="never").content["precision"]
    assert reasons[DOWN]["reason"].endswith("rounded to nearest")
    assert reasons[DOWN.replace("layers.1", "layers.2")]["reason"].endswith("own integers of 4 bits")


def test_export_with_evidence(cli: Callable[..., Ran], tmp_path: Path) -> None:
    hf.import_transformers()
    folder, out = FOLDER / "patterns", tmp_path / "bundle"
    options = ["--precision", "fp32", "--golden", "always", "--json"]
    ran = cli("export", BASE, "--adapter", folder, "-o", out, *options)
    assert ran.code == 0, ran.err
    source = json.loads((out / "lensmith.json").read_text())["source"]
    assert source["adapter"] == {"name": "patterns", "base": "tiny/qwen3_vl", "rank": 4, "alpha": 6, "dora": False,
                                 "modules": 2, "saved": 0}  # fmt: skip
    assert {"adapter_config.json", "adapter_model.safetensors"} <= source["files"].keys()
    model = Reference(BASE, threads=1, adapter=folder).model
    for name, expected in load_file(folder / EXPECTED).items():
        assert relative_error(model.state_dict()[name].numpy(), expected) < 3e-7
    assert cli("verify", out).code == 0
    assert "qwen3_vl, with the adapter patterns merged into it" in cli("inspect", out).out
    against = cli("compare", out, "--against", BASE)
    assert against.code == 2
    assert "adapter_config.json differs" in against.err


def test_another_adapter_is_another_export(tmp_path: Path) -> None:
    bundles = [export(prepare(BASE, Options(), adapter=adapter(tmp_path / name, down(), lora_alpha=alpha)),
                      tmp_path / f"bundle-{name}", golden="never") for name, alpha in (("a", 4), ("b", 5))]  # fmt: skip
    files = [bundle.content["files"]["decoder.data"] for bundle in bundles]
    assert files[0] != files[1]


def test_adapter_given_alone(cli: Callable[..., Ran], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", down(), base_model_name_or_path="Qwen/Qwen3-VL-2B-Instruct")
    for command in (("export", folder, "-o", tmp_path / "b"), ("plan", folder)):
        ran = cli(*command)
        assert ran.code == 2
        assert "is an adapter of Qwen/Qwen3-VL-2B-Instruct, not a model" in ran.err
        assert "--adapter" in ran.err


def test_adapter_within_a_model(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "both")
    adapter(tmp_path / "both", down())
    with pytest.raises(InputError, match="holds a model and an adapter"):
        open_checkpoint(tmp_path / "both")


def test_other_templates_and_tokenizers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = adapter(tmp_path, down())
    tokenizer = json.loads((BASE / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=7))
    shutil.copy(BASE / "chat_template.jinja", folder)
    open_checkpoint(BASE, folder)
    assert not caplog.messages
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    open_checkpoint(BASE, folder)
    assert [message.partition(" differs from")[0] for message in caplog.messages] == [
        str(folder / "chat_template.jinja"),
        str(folder / "tokenizer.json"),
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "an adapter of the kind 'LOHA'.*LORA alone"),
        ({"peft_type": None}, "an adapter of the kind"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as 'pissa_niter_4', which changes the base"),
        ({"init_lora_weights": "olora"}, "began as 'olora'"),
        ({"target_parameters": ["experts"]}, "sets target_parameters, which lensmith does not merge"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"something_new": 1}, "sets something_new"),
        ({"r": "8"}, "has r '8', expected a number"),
        ({"lora_alpha": float("nan")}, "has lora_alpha nan"),
        ({"r": 4}, "matrices of rank 2 for .*down_proj, and adapter_config.json says 4"),
        ({"rank_pattern": {"down_proj": 3}}, "says 3"),
        ({"rank_pattern": {"(": 2}}, r"the pattern '\(' in rank_pattern, which is none"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "may take for ever"),
        ({"alpha_pattern": {"a*" * 9: 2}}, "may take for ever"),
        ({"alpha_pattern": {"a" * 501: 2}}, "may take for ever"),
        ({"r": 0}, "has r 0, expected a number"),
        ({"r": True}, "has r True"),
        ({"alpha_pattern": {"down_proj": "x"}}, "has down_proj 'x'"),
        ({"alpha_pattern": [1]}, "has a alpha_pattern that is no object"),
        ({"use_dora": True}, "DoRA needs a lora_magnitude_vector of 128 rows"),
    ],
)
def test_settings_that_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(BASE, adapter(tmp_path, down(), **config))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair(f"{PREFIX}layers.1.mlp.dawn_proj", 128, 384), "dawn_proj.weight', which the base does not have; did you"),
        (pair(f"{PREFIX}layers.1.mlp.down_proj", 128, 380), "do not fit .*down_proj.weight of shape"),
        (pair(f"{PREFIX}layers.1.mlp.down_proj", 64, 384), "do not fit"),
        ({name: value for name, value in down().items() if "lora_B" not in name}, "lora_B of .* is missing"),
        (down(**{"lora_B.bias": floats((128,))}), "down_proj.bias', which the base does not have"),
        (pair("base_model.model.model.visual.blocks.0.attn.proj", 128, 128, **{"lora_B.bias": floats((64,))}),
         r"lora_B.bias' of shape \[64\], and the base \[128\]"),
        (down(lora_magnitude_vector=floats((128,))), "its configuration no use_dora"),
        (down(lora_embedding_A=floats((2, 2))), "cannot be merged|is missing"),
        ({**down(), f"{PREFIX}layers.1.mlp.down_proj.lora_E": floats((2, 1))}, "lora_E.*the base does not have"),
        ({f"{PREFIX}norm.weight": floats((64,))}, r"of shape \[64\], and the base \[128\]"),
        ({f"{PREFIX}norm.weight": floats((128,)), "model.language_model.norm.weight": floats((128,))}, "twice"),
        ({}, "holds no tensor"),
        ({**down(), **{name.replace("lora_A.", "lora_A.one."): value for name, value in down().items()}},
         "several adapters"),
    ],
)  # fmt: skip
def test_tensors_that_have_no_place(tensors: dict[str, Floats], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(BASE, adapter(tmp_path, tensors))


def test_tied_changes_are_refused(tmp_path: Path) -> None:
    value = open_checkpoint(BASE).tensor(TABLE).numpy()
    folder = adapter(tmp_path, {f"{PREFIX}embed_tokens.weight": value}, ensure_weight_tying=True)
    with pytest.raises(InputError, match="changes the token table and the head"):
        open_checkpoint(BASE, folder)


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    adapter(tmp_path / "run" / "checkpoint-5", down())
    (tmp_path / "pickled").mkdir()
    shutil.copy(tmp_path / "run" / "checkpoint-5" / "adapter_config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "adapter_model.bin").touch()
    for folder, message in (("none", "is not a folder"), ("run", "has adapters in checkpoint-5"),
                            ("pickled", "only pickled weights")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            open_checkpoint(BASE, tmp_path / folder)
