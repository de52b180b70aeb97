"""The ladder for SmolVLM and Idefics3: a SigLIP tower over tiles, a pixel shuffle, and words around image tokens."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.evidence.torch_loading import lacks_lanczos
from lensmith.exporters.families.smolvlm import siglip_tower
from lensmith.exporters.families.smolvlm.siglip_spec import MOST_SIDE, ROUNDED, SiglipSpec
from lensmith.exporters.families.smolvlm.smolvlm import describe
from lensmith.exporters.families.smolvlm.smolvlm_synth import smolvlm_tensors
from lensmith.exporters.graphs.graph_terms import Op, Value
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.synth.synth_layouts import SynthTensor
from lensmith.exporters.synth.synth_weights import write_weights
from lensmith.runtimes.engines.llamacpp import gguf_check
from lensmith.runtimes.engines.llamacpp.header import read_gguf
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.media.pixels import image_grid, preprocess, to_frames
from lensmith.runtimes.media.tiles import TileSpec
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import CheckFailed, InputError
from PIL import Image

from tests.helpers import hf, ladder
from tests.helpers.ladder import CONVERSATIONS, IMAGES, Ladder, Pair, compile_pair, packed_error, random_image
from tests.paths import ROOT

ARCHITECTURE = "smolvlm2-500m"

# Measured are 1e-6 for features and 3e-6 for logits; both sides compute in float32 in other orders.
FEATURES, LOGITS, CHUNKED = 2e-5, 5e-5, 5e-5
CONFIG = ROOT / "exporters/synth/synth_configs/smolvlm2-500m/config.json"
Change = Callable[[dict[str, Any]], None]
lanczos = pytest.mark.skipif(lacks_lanczos(), reason="transformers takes cubic weights with a torchvision below 0.27")


class TestLadder(Ladder):
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED


def text(**values: Any) -> Change:
    return lambda config: config["text_config"].update(values)


def vision(**values: Any) -> Change:
    return lambda config: config["vision_config"].update(values)


def outer(**values: Any) -> Change:
    return lambda config: config.update(values)


def both(*changes: Change) -> Change:
    def change(config: dict[str, Any]) -> None:
        for each in changes:
            each(config)

    return change


def idefics3(config: dict[str, Any]) -> None:
    """As the first SmolVLM of 256M has it."""
    config.update(model_type="idefics3", architectures=["Idefics3ForConditionalGeneration"])
    config["vision_config"].update(model_type="siglip_vision_model", use_base_siglip=True)


VARIANTS: dict[str, Change] = {
    "idefics3": idefics3,
    "tied head": outer(tie_word_embeddings=True),
    "patches of 14 pixels, squares of 3, heads of 72": both(
        vision(image_size=84, patch_size=14, hidden_size=144), outer(scale_factor=3)
    ),
    "pixels behind the last patch": vision(image_size=73, patch_size=9, hidden_act="gelu"),
    "every patch a token": both(vision(image_size=32), outer(scale_factor=1)),
    "one layer": vision(num_hidden_layers=1),
    "biases in the decoder": text(attention_bias=True, mlp_bias=True),
    "stretched positions": text(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 256}),
}  # fmt: skip


def edit(path: Path, change: Change) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def variant(base: Path, folder: Path, change: Change, images: Mapping[str, Any] | None = None) -> Path:
    """A copy of `base` with another config.json, fresh weights and processors to match."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    edit(folder / "config.json", change)
    config = json.loads((folder / "config.json").read_text())
    tower = config["vision_config"]
    side, edge = tower["image_size"] // tower["patch_size"], tower["image_size"]
    kind = "Idefics3" if config["model_type"] == "idefics3" else "SmolVLM"
    given: dict[str, Any] = {"size": {"longest_edge": 3 * edge}, "max_image_size": {"longest_edge": edge}}
    named = {"image_processor_type": f"{kind}ImageProcessor", "processor_class": f"{kind}Processor"}
    edit(folder / "preprocessor_config.json", outer(**given | named | {**(images or {})}))
    tokens = (side // config["scale_factor"]) ** 2
    edit(folder / "processor_config.json", outer(image_seq_len=tokens, processor_class=f"{kind}Processor"))
    tensors = [*smolvlm_tensors(config), *biases(config["text_config"])]
    tied = config["tie_word_embeddings"]
    full = [replace(tensor, dtype="F32") for tensor in tensors if not (tied and tensor.name == "lm_head.weight")]
    write_weights(folder / "model.safetensors", full, 1, lambda *_: None)
    return folder


def biases(text: Mapping[str, Any]) -> list[SynthTensor]:
    if not text.get("attention_bias"):
        return []
    query, key = (text[name] * text["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    sizes = {"self_attn.q": query, "self_attn.k": key, "self_attn.v": key, "self_attn.o": hidden, "mlp.gate": inner,
             "mlp.up": inner, "mlp.down": hidden}  # fmt: skip
    return [
        SynthTensor(f"model.text_model.layers.{layer}.{name}_proj.bias", (size,), "position")
        for layer in range(text["num_hidden_layers"])
        for name, size in sizes.items()
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    pair = compile_pair(variant(base, tmp_path / "source", VARIANTS[name]), tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[1:4], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"precision": "int4", "symmetric": False}])
def test_packed_weights_are_what_they_stand_for(
    options: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder.need_torch()
    source = variant(base, tmp_path / "source", lambda _: None)
    assert packed_error(source, tmp_path / "bundle", IMAGES[1:3], monkeypatch, **options) < LOGITS


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_pixels_and_ids_are_those_of_transformers(kind: str, base: Path, tmp_path: Path) -> None:
    """Over random sizes, numbers of images and words, with transformers' processor of each type."""
    if kind == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' processor of SmolVLM needs num2words")
    processors = hf.import_transformers()
    draw = random.Random(kind)
    for round_ in range(3):
        edge, split = draw.choice([3, 2.5, 1, 4]), round_ != 2
        images = {"size": {"longest_edge": int(128 * edge)}, "do_image_splitting": split}
        source = variant(base, tmp_path / str(round_), VARIANTS["idefics3"] if kind == "idefics3" else lambda _: None,
                         images)  # fmt: skip
        processor = processors.AutoProcessor.from_pretrained(source)
        assert type(processor).__name__.lower() == f"{kind}processor"
        model = Model(export(prepare(source, Options(precision="fp32")), tmp_path / f"b{round_}", golden="never"))
        for _ in range(4):
            check_conversation(model, processor, draw)


def check_conversation(model: Model, processor: Any, draw: random.Random) -> None:
    asked: list[dict[str, Any]] = []
    for _ in range(draw.randint(1, 3)):
        pictures = [random_image(draw.randint(3, 700), draw.randint(4, 500)) for _ in range(draw.randint(0, 2))]
        words = " ".join(draw.choice(["Wie", "viel", "<b>", "3.14", "\n", "日本", "don't", "  x"]) for _ in range(12))
        asked += [user_message(words, pictures), {"role": "assistant", "content": [{"type": "text", "text": "ok 42"}]}]
    asked = asked[:-1]
    ids = processor.apply_chat_template(
        asked, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="np"
    )["input_ids"]
    assert model.prompts.encode(*_text_and_grids(model, asked)).ids.tolist() == np.asarray(ids).reshape(-1).tolist()
    for message in asked:
        for image in (part["image"] for part in message["content"] if part["type"] == "image"):
            theirs = processor.image_processor(images=[image], return_tensors="np")["pixel_values"][0]
            pixels, grid = preprocess(image, model.image_spec)
            assert pixels.shape == theirs.shape
            if not lacks_lanczos():
                np.testing.assert_array_equal(pixels, theirs)
            rgb = np.asarray(to_frames(pixels, grid, model.image_spec), np.float32) / 127.5 - 1
            np.testing.assert_allclose(np.moveaxis(rgb[:, 0], -1, 1), pixels, atol=1e-6)


def _text_and_grids(model: Model, asked: list[dict[str, Any]]) -> tuple[str, list[tuple[int, int, int]]]:
    images = [part["image"] for message in asked for part in message["content"] if part["type"] == "image"]
    return model.prompts.render(asked), [image_grid(i.height, i.width, model.image_spec) for i in images]


def test_tiles_have_places_of_their_own_in_the_prompt(pair: Pair) -> None:
    """17 tiles of a square picture and 4 tokens each; the last one is the whole picture."""
    request = pair.model.prepare([user_message("What?", [IMAGES[0]])])
    assert len(request.images) == 17
    assert request.prompt.media_tokens() == (68, 0)
    assert (request.prompt.image_spans[1:, 0] > request.prompt.image_spans[:-1, 1]).all()
    whole = pair.model.media.encode(*pair.model.media.open([user_message("", [IMAGES[0]])], _timings()), _timings())
    np.testing.assert_array_equal(request.images[3].features.features, whole[0][0].features.features[12:16])
    assert len({image.key for image in request.images}) == 17


def _timings() -> Any:
    from lensmith.runtimes.generation.timings import Timings

    return Timings()


def test_texts_reach_a_template_that_knows_parts_alone(pair: Pair) -> None:
    """Its letters would be taken for parts, which have no type: earlier answers would be lost without a word."""
    plain = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "A disc."},
             {"role": "user", "content": "And?"}]  # fmt: skip
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in plain]
    expected = "<|im_start|>User: Hello!<end_of_utterance>\nAssistant: A disc.<end_of_utterance>\nUser: And?"
    assert pair.model.prompts.render(plain) == expected + "<end_of_utterance>\nAssistant:"
    assert pair.model.prompts.render(parts) == pair.model.prompts.render(plain)
    assert pair.model.prompts.render("Hello!").startswith("<|im_start|>User: Hello!")
    going_on = pair.model.prompts.render(plain[:2], continue_final_message=True)
    assert going_on.endswith("Assistant: A disc.")


@lanczos
def test_fewer_tiles_on_request(base: Path, pair: Pair) -> None:
    """As transformers has it with another `size`; for a call, a model, and a whole bundle."""
    picture = IMAGES[0]
    request = pair.model.prepare([user_message("What?", [picture])], max_pixels=300 * 300)
    assert len(request.images) == 5
    processor = hf.import_transformers().AutoProcessor.from_pretrained(base)
    theirs = processor.image_processor(images=[picture], size={"longest_edge": 256}, return_tensors="np")
    spec = pair.model.image_spec.with_pixels(max_pixels=256 * 256)
    np.testing.assert_array_equal(preprocess(picture, spec)[0], theirs["pixel_values"][0])
    job = prepare(base, Options(max_pixels=256 * 256))
    assert job.sections["limits"]["max_image_tokens"] == 5 * 4
    wishes: list[dict[str, Any]] = [{"max_pixels": 128**2 - 1}, {"max_pixels": 512**2 + 1}, {"min_pixels": 5}]
    for wish in wishes:
        with pytest.raises(InputError, match=r"was built for|no effect"):
            pair.model.prepare([user_message("What?", [picture])], **wish)


def test_the_default_export_is_proven(base: Path, tmp_path: Path) -> None:
    """Graphs against PyTorch, weights, constants, pixels and ids, and golden traces that replay; the plan fits."""
    ladder.need_torch()
    job = prepare(base, Options())
    bundle = export(job, tmp_path / "bundle", golden="always")
    assert bundle.content["evidence"]["golden"]["recorded"]
    assert verify(bundle).passed
    assert "video" not in bundle.content
    built = sum(entry.size for entry in bundle.manifest.files.values())
    assert abs(make_plan(job).bundle_bytes - built) < 0.05 * built


WRONG: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "squares read by columns": lambda patch: patch.setattr(
        siglip_tower.Connector, "forward", lambda self, op, x: _shuffled(self, op, x, [0, 1, 3, 4, 2, 5])
    ),
    "tokens read by columns": lambda patch: patch.setattr(
        siglip_tower.Connector, "forward", lambda self, op, x: _shuffled(self, op, x, [0, 3, 1, 2, 4, 5])
    ),
    "no positions": lambda patch: patch.setattr(
        siglip_tower.SiglipPositions, "forward", lambda self, op: op.Mul(self.weight, 0.0)
    ),
    "no last norm": lambda patch: patch.setattr(siglip_tower.SiglipTower, "forward", _without_norm),
}


def _shuffled(self: Any, op: Op, patches: Value, order: list[int]) -> Value:
    spec, count = self.spec, self.spec.side // self.spec.shuffle
    squares = op.Reshape(patches, [-1, count, spec.shuffle, count, spec.shuffle, spec.hidden])
    tokens = op.Reshape(op.Transpose(squares, perm=order), [-1, spec.shuffled])
    return self.dialect.leave(op, self.modality_projection(op, tokens))


def _without_norm(self: Any, op: Op, pixels: Value) -> Value:
    stream, delta = self.encoder(op, self.embeddings(op, pixels))
    normed, summed = self.post_layernorm(op, stream, delta)
    return op.Add(summed, op.Mul(normed, 0.0))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_graphs_are_told(name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder.need_torch()
    WRONG[name](monkeypatch)
    with pytest.raises(CheckFailed):
        export(prepare(base, Options(precision="fp32")), tmp_path / "bundle", golden="always")


@pytest.mark.parametrize("options", [{"target": "cuda"}, {"format": "tensorrt", "target": "rtx-40", "context": 2048}])
def test_dialects_for_gpus(
    options: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by ONNX Runtime on the CPU, in float32."""
    ladder.need_torch()
    ladder.change_target(monkeypatch, activations="float32", lacks=())
    pair = compile_pair(base, tmp_path / "bundle", **options)
    errors = pair.worst_error(IMAGES[1:3], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES
    theirs = pair.reference.greedy(pair.theirs(CONVERSATIONS["one image"]), 24, ignore_eos=True)
    answer = pair.model.generate(CONVERSATIONS["one image"], GenerationOptions(max_new_tokens=24, ignore_eos=True))
    answer.read()
    assert answer.ids == theirs.ids


def test_published_values() -> None:
    """The configuration that `lensmith synth` has at full size is that of the published 500M."""
    config = json.loads(CONFIG.read_text())
    spec = describe(config, "smolvlm")
    tower, decoder = spec.vision, spec.decoder
    assert isinstance(tower, SiglipSpec)
    assert (tower.depth, tower.intermediate, tower.side, tower.tile_tokens, tower.norm_eps) == (12, 3072, 32, 64, 1e-6)
    assert (decoder.layers, decoder.heads, decoder.kv_heads, decoder.head_dim) == (32, 15, 5, 64)
    assert (decoder.rope_theta, decoder.tied, decoder.qk_norm, decoder.vocab) == (100000.0, False, False, 49280)
    theirs = hf.import_transformers().AutoConfig.for_model(**config)
    assert tower.activation == "gelu_tanh" == theirs.vision_config.hidden_act.replace("pytorch_", "")
    assert decoder.rope_theta == theirs.text_config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_values_that_are_left_out_are_those_of_transformers(kind: str) -> None:
    config: dict[str, Any] = {"model_type": kind, "text_config": {}, "vision_config": {"image_size": 64}}
    theirs = hf.import_transformers().AutoConfig.for_model(**json.loads(json.dumps(config)))
    spec = describe(config, kind)
    tower, decoder, wanted = spec.vision, spec.decoder, theirs.vision_config
    assert isinstance(tower, SiglipSpec)
    assert (tower.depth, tower.hidden, tower.heads, tower.intermediate, tower.patch_size, tower.image_size) == (
        wanted.num_hidden_layers, wanted.hidden_size, wanted.num_attention_heads, wanted.intermediate_size,
        wanted.patch_size, wanted.image_size,
    )  # fmt: skip
    assert (tower.norm_eps, tower.shuffle) == (wanted.layer_norm_eps, theirs.scale_factor)
    wanted = theirs.text_config
    assert (decoder.layers, decoder.hidden, decoder.heads, decoder.kv_heads, decoder.vocab, decoder.context) == (
        wanted.num_hidden_layers, wanted.hidden_size, wanted.num_attention_heads, wanted.num_key_value_heads,
        wanted.vocab_size, wanted.max_position_embeddings,
    )  # fmt: skip
    assert (decoder.norm_eps, decoder.tied) == (wanted.rms_norm_eps, theirs.tie_word_embeddings)
    assert spec.image_token_id == theirs.image_token_id


def test_patches_have_their_own_positions_in_transformers() -> None:
    """Of all numbers of patches a side that are taken; those that are refused may have others there."""
    transformers = hf.import_transformers()
    import torch

    module = transformers.models.smolvlm.modeling_smolvlm.SmolVLMVisionEmbeddings
    for side in sorted({*range(1, MOST_SIDE + 1)} - {*ROUNDED}):
        config = transformers.models.smolvlm.SmolVLMVisionConfig(hidden_size=1, image_size=side, patch_size=1)
        embeddings = module(config)
        with torch.no_grad():
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            embeddings.position_embedding.weight.copy_(torch.arange(side * side)[:, None])
            found = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))
        assert found[0, :, 0].tolist() == list(range(side * side)), side


REFUSED: dict[str, tuple[Change, str]] = {
    "squares that do not fit": (outer(scale_factor=3), "scale_factor"),
    "no square": (outer(scale_factor=0), "scale_factor"),
    "positions that are rounded": (vision(image_size=40 * 16), "image_size"),
    "grey": (vision(num_channels=1), "num_channels"),
    "heads that do not fit": (vision(num_attention_heads=3), "hidden_size"),
    "an activation": (vision(hidden_act="relu"), "hidden_act"),
    "another decoder": (text(model_type="mistral"), "mistral"),
    "windows": (text(layer_types=["sliding_attention"] * 4), "layer_types"),
    "a null that transformers refuses": (outer(image_token_id=None), "image_token_id is null"),
    "a size of two numbers": (vision(image_size=[128, 128]), "image_size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_named(name: str, base: Path) -> None:
    change, words = REFUSED[name]
    config = json.loads((base / "config.json").read_text())
    change(config)
    with pytest.raises(InputError, match=words):
        describe(config, "smolvlm")


FILES: dict[str, tuple[str, Change, str]] = {
    "tiles of another size": ("preprocessor_config.json", outer(max_image_size={"longest_edge": 64}), "64 pixels"),
    "another number of tokens": ("processor_config.json", outer(image_seq_len=9), "image_seq_len 9"),
    "no number of tokens": ("processor_config.json", lambda values: values.pop("image_seq_len"), "image_seq_len 169"),
    "another processor": ("preprocessor_config.json", outer(image_processor_type="CLIPImageProcessor"), "CLIPImage"),
    "a step left out": ("preprocessor_config.json", outer(do_resize=False), "do_resize"),
    "another resampling": ("preprocessor_config.json", outer(resample=0), "resample"),
    "height and width": ("preprocessor_config.json", outer(size={"height": 512, "width": 512}), "longest_edge alone"),
    "a side of no pixels": ("preprocessor_config.json", outer(size={"longest_edge": 0}), "longest_edge"),
    "a step nobody knows": ("preprocessor_config.json", outer(do_turn=True), "do_turn"),
    "another image token": (
        "tokenizer_config.json", outer(extra_special_tokens={"image_token": "<global-img>"}), "image token"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_processors_that_do_not_fit_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    file, change, words = FILES[name]
    shutil.copytree(base, tmp_path / "source")
    edit(tmp_path / "source" / file, change)
    with pytest.raises(InputError, match=words):
        prepare(tmp_path / "source", Options())


def test_images_of_too_many_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    small = both(vision(image_size=4, patch_size=1), outer(scale_factor=1))
    source = variant(base, tmp_path / "source", small, {"size": {"longest_edge": 4096}})
    with pytest.raises(InputError, match="16777232 tokens of one image"):
        prepare(source, Options())
    assert prepare(source, Options(max_pixels=400 * 400)).sections["image"]["longest_edge"] == 400


def test_settings_in_one_file_and_older_names(base: Path, tmp_path: Path) -> None:
    """As transformers 5 writes processors, and tensors as `AutoModel` of older ones did."""
    source = Path(shutil.copytree(base, tmp_path / "source"))
    images = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").unlink()
    edit(source / "processor_config.json", outer(image_processor=images))
    from safetensors.numpy import load_file, save_file

    full = load_file(variant(base, tmp_path / "full", lambda _: None) / "model.safetensors")
    save_file({name.removeprefix("model."): values for name, values in full.items()}, source / "model.safetensors")
    edit(source / "processor_config.json", lambda values: values["image_processor"].update(size={"longest_edge": 384}))
    one, other = (prepare(path, Options()) for path in (source, tmp_path / "full"))
    assert one.sections == other.sections
    assert one.checkpoint.tensors.keys() == other.checkpoint.tensors.keys()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("outside", "inside"), [(False, True), (True, False), (True, True), (False, False)])
def test_heads(outside: bool, inside: bool, kept: bool, base: Path, tmp_path: Path) -> None:
    """A saved head counts; without one, the flag outside ties it, and the one inside does not."""
    ladder.need_torch()
    change = both(outer(tie_word_embeddings=outside), text(tie_word_embeddings=inside), vision(image_size=64))
    source = variant(base, tmp_path / "source", both(change, outer(tie_word_embeddings=not kept)))
    edit(source / "config.json", outer(tie_word_embeddings=outside))
    if not kept and not outside:
        with pytest.raises(InputError, match="tie_word_embeddings"):
            prepare(source, Options())
        return
    pair = compile_pair(source, tmp_path / "bundle")
    assert relative_error(*pair.all_logits([user_message("Name three colours.")])) < LOGITS


def test_videos_are_told_to_be_left_out(base: Path, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    prepare(base, Options())
    assert "videos of smolvlm are not supported yet" in caplog.text
    with pytest.raises(InputError, match="video"):
        pair.model.prepare([user_message("What moves?", [], ["clip.gif"])])


@lanczos
@pytest.mark.parametrize("size", [(1, 1), (2, 399), (700, 4), (513, 512), (4000, 30)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    """The steps of longest edges that are odd, or above the most, and of pictures with a side of a few pixels."""
    transformers = hf.import_transformers()
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8))
    for edge, tile in ((97, 48), (4096, 2048), (33, 33), (64, 96)):
        settings = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": tile}}
        theirs = transformers.Idefics3ImageProcessor(**settings)(
            images=[picture], return_tensors="np", return_row_col_info=True
        )
        spec = TileSpec.from_config(settings, 1)
        pixels, grid = preprocess(picture, spec)
        np.testing.assert_array_equal(pixels, theirs["pixel_values"][0])
        assert grid[:2] == (theirs["rows"][0][0] or 1, theirs["cols"][0][0] or 1)


# Features as of other encoders in llama.cpp, whose GELU is a table of halves.
FILE_FEATURES, FILE_LOGITS = 4e-3, 4e-3
IN_FILES = ("published", "idefics3", "tied head", "patches of 14 pixels, squares of 3, heads of 72")


@pytest.mark.parametrize("name", IN_FILES)
def test_files_of_llama_cpp(name: str, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
    ladder.need_torch()
    source = variant(base, tmp_path / "source", VARIANTS.get(name, lambda _: None))
    pair = compile_pair(source, tmp_path / "bundle", format="gguf", precision="f32")
    errors = pair.worst_error(IMAGES[1:4], CONVERSATIONS["two turns"])
    assert errors["features"] < FILE_FEATURES
    assert errors["logits"] < FILE_LOGITS


def test_pixels_behind_the_last_patch_in_llama_cpp(base: Path, tmp_path: Path) -> None:
    """As the published 2.2B has them: 384 pixels in patches of 14."""
    pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
    ladder.need_torch()
    source = variant(base, tmp_path / "source", both(vision(image_size=87, patch_size=14), outer(scale_factor=3)))
    pair = compile_pair(source, tmp_path / "bundle", format="gguf", precision="f32")
    assert pair.worst_error(IMAGES[1:3], CONVERSATIONS["one image"])["features"] < FILE_FEATURES


def test_an_export_for_llama_cpp_is_proven(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
    ladder.need_torch()
    bundle = export(prepare(base, Options(format="gguf", precision="q8_0")), tmp_path / "bundle", golden="always")
    assert bundle.content["evidence"]["golden"]["recorded"]
    assert verify(bundle).passed


WITHOUT_PLACE: dict[str, tuple[Change, dict[str, Any], str]] = {
    "an exact GELU": (vision(hidden_act="gelu"), {}, "'gelu'"),
    "bytes in 256 steps": (lambda _: None, {"rescale_factor": 1 / 256}, "rescale_factor 0.0039"),
    "bytes as they are": (lambda _: None, {"do_normalize": False}, "no normalization"),
    "biases in the decoder": (text(attention_bias=True, mlp_bias=True), {}, "biases"),
    "every patch a token": (both(vision(image_size=32), outer(scale_factor=1)), {}, "scale_factor 1"),
}


@pytest.mark.parametrize("name", WITHOUT_PLACE)
def test_models_without_a_place_in_llama_cpp_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    change, images, words = WITHOUT_PLACE[name]
    source = variant(base, tmp_path / "source", change, images)
    with pytest.raises(InputError, match=words):
        prepare(source, Options(format="gguf", precision="f16"))


SHUFFLE = "clip.vision.projector.scale_factor"
DAMAGES: dict[str, tuple[Change, str]] = {
    "no squares": (lambda values: values.pop(SHUFFLE), SHUFFLE),
    "squares of nothing": (outer(**{SHUFFLE: 0}), SHUFFLE),
    "squares of one patch": (outer(**{SHUFFLE: 1}), "do not divide"),
    "squares that do not fit": (outer(**{SHUFFLE: 3}), "do not divide"),
    "squares of another size": (outer(**{SHUFFLE: 2}), "mm.model.fc.weight"),
    "another width inside": (outer(**{"clip.vision.feed_forward_length": 255}), "the tensor 'v.blk.0.ffn_down"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_encoders_of_strangers_are_checked(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = DAMAGES[name]
    bundle = export(prepare(base, Options(format="gguf", precision="f16")), tmp_path / "bundle", golden="never")
    header = read_gguf(bundle.file("mmproj.gguf"))
    values = dict(header.metadata)
    change(values)
    monkeypatch.setattr(gguf_check, "read_gguf", lambda _: replace(header, metadata=values))
    with pytest.raises(InputError, match=words):
        gguf_check.check_vision(bundle.file("mmproj.gguf"), 192)
