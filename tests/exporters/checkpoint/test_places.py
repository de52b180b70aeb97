"""Templates, processor settings, tokens and classes from every place that transformers reads, in its order."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.checkpoint.folder import Checkpoint, open_checkpoint
from lensmith.exporters.checkpoint.tokenizer_files import SourceTokenizer
from lensmith.exporters.families.families import FAMILIES, find_family
from lensmith.exporters.pipeline import (
    Options,
    export,
    prepare,
)
from lensmith.runtimes.media.images import ImageSpec
from lensmith.runtimes.media.video import VideoSpec
from lensmith.runtimes.prompt.template import ChatTemplate
from lensmith.targets.errors import InputError

from tests.helpers import hf
from tests.paths import TINY

CONVERSATION = [{"role": "user", "content": "hi"}]
Edit = Callable[[Path], object]


def copied(folder: Path, family: str = "qwen3_vl", *removed: str) -> Path:
    shutil.copytree(TINY / family, folder)
    for name in removed:
        (folder / name).unlink()
    return folder


def merge(folder: Path, name: str, values: Mapping[str, Any], *dropped: str) -> int:
    """Change keys of a JSON file, which may not be there yet."""
    path = folder / name
    old = json.loads(path.read_text()) if path.is_file() else {}
    kept = {key: value for key, value in old.items() if key not in dropped}
    return path.write_text(json.dumps({**kept, **values}))


@cache
def auto() -> Any:
    transformers = hf.import_transformers()
    transformers.logging.set_verbosity_error()
    return transformers


# Templates ---------------------------------------------------------------------------------------------------------

PROCESSOR, LEGACY, JINJA, MORE, TOKENIZER = "processor", "json", "jinja", "more", "tokenizer"


def write_template(folder: Path, place: str, text: str) -> None:
    if place == PROCESSOR:
        merge(folder, "processor_config.json", {"chat_template": text})
    elif place == LEGACY:
        merge(folder, "chat_template.json", {"chat_template": text})
    elif place == JINJA:
        (folder / "chat_template.jinja").write_text(text)
    elif place == MORE:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "default.jinja").write_text(text)
    else:
        merge(folder, "tokenizer_config.json", {"chat_template": [{"name": "default", "template": text}]})


def test_every_set_of_templates(tmp_path: Path) -> None:
    """All 31 sets of five places: the template of transformers; where it has none for images, the tokenizer's."""
    places = (PROCESSOR, LEGACY, JINJA, MORE, TOKENIZER)
    sets = [given for size in range(1, 6) for given in itertools.combinations(places, size)]
    for number, given in enumerate(sets):
        folder = copied(tmp_path / str(number), "qwen3_vl", "chat_template.jinja", "model.safetensors")
        (folder / "model.safetensors").symlink_to(TINY / "qwen3_vl" / "model.safetensors")
        for place in given:
            write_template(folder, place, f"{place} {{{{ eos_token }}}}")
        if {LEGACY, MORE} <= set(given):
            with pytest.raises(ValueError, match="conflicting files"):
                auto().AutoProcessor.from_pretrained(folder)
            if PROCESSOR not in given:  # transformers does not load it; a template that is found first is one
                with pytest.raises(InputError, match=r"chat_template\.json and in additional_chat_templates"):
                    open_checkpoint(folder)
            continue
        checkpoint = open_checkpoint(folder)
        ours = ChatTemplate(str(checkpoint.chat_template)).render(CONVERSATION, **checkpoint.special_tokens)
        processor = auto().AutoProcessor.from_pretrained(folder)
        reader = processor.tokenizer if given == (TOKENIZER,) else processor
        assert ours == reader.apply_chat_template(CONVERSATION, tokenize=False), given


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("processor_config.json", {"chat_template": ["T"]}, "processor_config.json has"),
        ("processor_config.json", {"chat_template": {"rag": "R"}}, r"the names \['rag'\]"),
        ("processor_config.json", {"chat_template": 7}, "expected one text"),
        ("chat_template.json", {}, "chat_template.json has the names"),
        ("chat_template.json", {"chat_template": [{"name": "default", "template": "T"}]}, "chat_template.json has"),
    ],
)
def test_templates_that_transformers_cannot_use(
    name: str, values: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    folder = copied(tmp_path / "source")
    merge(folder, name, values)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_other_templates_do_not_count(tmp_path: Path) -> None:
    folder = copied(tmp_path / "source")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("RAG")
    assert open_checkpoint(folder).chat_template == (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"chat_template\.jinja has the names \['rag'\]"):
        open_checkpoint(folder)


def test_templates_of_a_tokenizer_alone(tmp_path: Path) -> None:
    """A model without images has no processor, whose places do not count then."""
    folder = copied(tmp_path / "source", "qwen3_5", "chat_template.jinja", "model.safetensors")
    (folder / "model.safetensors").symlink_to(TINY / "qwen3_5" / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_5_text"}))
    for place in (PROCESSOR, LEGACY, TOKENIZER):
        write_template(folder, place, f"{place} {{{{ eos_token }}}}")
    for _ in range(2):
        checkpoint, tokenizer = open_checkpoint(folder), auto().AutoTokenizer.from_pretrained(folder)
        ours = ChatTemplate(str(checkpoint.chat_template)).render(CONVERSATION, **checkpoint.special_tokens)
        assert ours == tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
        write_template(folder, JINJA, f"{JINJA} {{{{ eos_token }}}}")
    for dropped in ((), ("eos_token", "pad_token"), ("unk_token", "bos_token", "added_tokens_decoder")):
        merge(folder, "tokenizer_config.json", {}, *dropped)
        theirs = auto().AutoTokenizer.from_pretrained(folder).special_tokens_map
        assert open_checkpoint(folder).special_tokens == theirs, dropped


# Settings of processors --------------------------------------------------------------------------------------------

IMAGES: dict[str, Edit] = {
    "file": lambda folder: None,
    "part": lambda folder: [
        merge(folder, "processor_config.json", {"image_processor": settings(patch_size=4)}),
        (folder / "preprocessor_config.json").rename(folder / "not_read.txt"),
    ],
    "both": lambda folder: merge(folder, "processor_config.json", {"image_processor": settings(merge_size=1)}),
    "empty part": lambda folder: merge(folder, "processor_config.json", {"image_processor": {}}),
    "null part": lambda folder: merge(folder, "processor_config.json", {"image_processor": None}),
    "empty file": lambda folder: (folder / "preprocessor_config.json").write_text("{}"),
    "older keys": lambda folder: merge(
        folder, "preprocessor_config.json", {"min_pixels": 2048, "max_pixels": 4096}, "image_processor_type"
    ),
    "older keys alone": lambda folder: merge(folder, "preprocessor_config.json", {"min_pixels": 2048}, "size"),
    "one number for all": lambda folder: merge(folder, "preprocessor_config.json", {"image_mean": 0.25}),
}
VIDEOS: dict[str, Edit] = {
    "file": lambda folder: None,
    "part": lambda folder: merge(folder, "processor_config.json", {"video_processor": {"fps": 3, "max_frames": 9}}),
    "null part": lambda folder: merge(folder, "processor_config.json", {"video_processor": None}),
    "none": lambda folder: (folder / "video_preprocessor_config.json").unlink(),
    "older keys": lambda folder: merge(folder, "video_preprocessor_config.json", {"min_pixels": 2048}),
    "empty file": lambda folder: (folder / "video_preprocessor_config.json").write_text("{}"),
}


def settings(**values: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": 2048, "longest_edge": 8192}, **values}


def test_every_pair_of_processor_places(tmp_path: Path) -> None:
    """9 places of image settings with 6 of video settings, class defaults among them: values of transformers."""
    for number, (image, video) in enumerate(itertools.product(IMAGES, VIDEOS)):
        folder = copied(tmp_path / str(number), "qwen3_vl", "model.safetensors")
        (folder / "model.safetensors").symlink_to(TINY / "qwen3_vl" / "model.safetensors")
        IMAGES[image](folder)
        if video == "none" and image == "part":
            continue  # transformers has no settings at all then, see below
        VIDEOS[video](folder)
        checkpoint, processor = open_checkpoint(folder), auto().AutoProcessor.from_pretrained(folder)
        ours = ImageSpec.from_config(checkpoint.image_settings)
        assert values_of(ours) == their_values(processor.image_processor), (image, video)
        clips = VideoSpec.from_config(checkpoint.video_settings)
        theirs = processor.video_processor
        assert values_of(clips.patches) == their_values(theirs), (image, video)
        assert (clips.fps, clips.max_frames) == (theirs.fps, theirs.max_frames)


def values_of(spec: ImageSpec) -> tuple[Any, ...]:
    sizes = spec.patch_size, spec.temporal_patch_size, spec.merge_size, spec.min_pixels, spec.max_pixels
    return *sizes, spec.mean, spec.std, spec.rescale_factor


def their_values(processor: Any) -> tuple[Any, ...]:
    sizes = processor.patch_size, processor.temporal_patch_size, processor.merge_size
    edges = processor.size.shortest_edge, processor.size.longest_edge
    mean = processor.image_mean if isinstance(processor.image_mean, list | tuple) else (processor.image_mean,) * 3
    return *sizes, *edges, tuple(mean), tuple(processor.image_std), processor.rescale_factor


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava"])
def test_missing_settings_are_an_error(family: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "source", family, "preprocessor_config.json")
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, and no image_processor in processor_con"):
        prepare(folder, Options())
    merge(folder, "processor_config.json", {"image_processor": ["CLIP"]})
    with pytest.raises(InputError, match=r"has image_processor .* expected an object"):
        prepare(folder, Options())


@pytest.mark.parametrize(
    ("name", "values", "refused"),
    [
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "Qwen2VLImageProcessor"),
        ("processor_config.json", {"processor_class": "InternVLProcessor"}, "expected Qwen3VLProcessor"),
        ("processor_config.json", {"processor_class": ["Qwen3VLProcessor"]}, "expected Qwen3VLProcessor"),
    ],
)
def test_classes_that_do_something_else(name: str, values: Mapping[str, Any], refused: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "source")
    merge(folder, name, values)
    with pytest.raises(InputError, match=refused):
        prepare(folder, Options())


@pytest.mark.parametrize(
    ("change", "takes_videos"),
    [
        (lambda folder: None, True),
        (lambda folder: (folder / "video_preprocessor_config.json").unlink(), True),
        (lambda folder: merge(folder, "video_preprocessor_config.json", {"video_processor_type": "XVideo"}), False),
        (lambda folder: merge(folder, "video_preprocessor_config.json", {"video_processor_type": ["XVideo"]}), False),
        (lambda folder: merge(folder, "tokenizer_config.json", {"processor_class": "Qwen2VLProcessor"}), True),
        (lambda folder: merge(folder, "processor_config.json", {"processor_class": "Qwen2VLProcessor"}), False),
        (
            lambda folder: (
                (folder / "video_preprocessor_config.json").rename(folder / "not_read.txt"),
                merge(folder, "preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor"}),
            ),
            False,  # transformers infers Qwen2VLVideoProcessor, which takes all frames
        ),
    ],
)
def test_videos_of_other_classes_are_left_out(
    change: Edit, takes_videos: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(tmp_path / "source")
    change(folder)
    with caplog.at_level(logging.WARNING):
        job = prepare(folder, Options())
        assert ("video" in job.sections) == takes_videos
    assert ("the bundle takes none" in caplog.text) != takes_videos


# Tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava"])
def test_special_tokens_by_name(family: str, tmp_path: Path) -> None:
    """Of tokenizer_config.json with and without its list of tokens, special_tokens_map.json, and class defaults."""
    named: tuple[dict[str, Any], ...] = (
        {"eos_token": "<|im_start|>", "bos_token": "<|box_end|>"},
        {"eos_token": None, "pad_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False,
                                          "single_word": False, "normalized": False, "__type": "AddedToken"}},
        {"image_token": "<|vision_pad|>", "extra_special_tokens": {"own_token": "<|quad_end|>"}},
        {},
    )  # fmt: skip
    kept = (("eos_token", "pad_token", "unk_token", "bos_token", "additional_special_tokens"), ())
    lists, maps = ((), ("added_tokens_decoder",)), (True, False)
    for number, (values, dropped, listed, legacy) in enumerate(itertools.product(named, kept, lists, maps)):
        folder = copied(tmp_path / str(number), family, "model.safetensors")
        (folder / "model.safetensors").symlink_to(TINY / family / "model.safetensors")
        merge(folder, "tokenizer_config.json", values, *dropped, *listed)
        if not legacy:
            (folder / "special_tokens_map.json").unlink()
        theirs = auto().AutoTokenizer.from_pretrained(folder).special_tokens_map
        assert open_checkpoint(folder).special_tokens == theirs, (values, dropped, listed, legacy)


@pytest.mark.parametrize("legacy", [True, False])
def test_tokens_that_only_a_configuration_adds(legacy: bool, tmp_path: Path) -> None:
    """They are in the bundle's tokenizer with the numbers that transformers gives them."""
    folder = copied(tmp_path / "source")
    values = json.loads((folder / "tokenizer.json").read_text())
    last = values["added_tokens"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(values))
    if legacy:
        merge(folder, "tokenizer_config.json", {}, "added_tokens_decoder")
        (folder / "added_tokens.json").write_text(json.dumps({last["content"]: last["id"]}))
    theirs = auto().AutoTokenizer.from_pretrained(folder)
    checkpoint: Checkpoint = open_checkpoint(folder)
    ours = SourceTokenizer(checkpoint).library
    assert ours.token_to_id(last["content"]) == theirs.convert_tokens_to_ids(last["content"]) == last["id"]
    assert flags(ours.get_added_tokens_decoder()[last["id"]]) == flags(theirs.added_tokens_decoder[last["id"]])
    text = f"What word is {last['content']} written?"
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    bundle = export(prepare(folder, Options()), tmp_path / "bundle", golden="never")
    written = json.loads(bundle.file("tokenizer.json").read_text())["added_tokens"][-1]
    assert (written["id"], written["content"]) == (last["id"], last["content"])


# Other architectures -----------------------------------------------------------------------------------------------


MISSPELT = {"qwen3vl": "qwen3_vl", "Qwen3_VL": "qwen3_vl", "qwen3-vl": "qwen3_vl", "lava": "llava", "qwen35": "qwen3_5",
            "llavaa": "llava", "arlw": "arlow"}  # fmt: skip


def test_only_misspelt_names_get_a_question() -> None:
    """None of the architectures of transformers, and nothing that is no name, is taken for a supported one."""
    known = auto().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    others = [name for name in (*known, None, 7, ["qwen3_vl"], "x" * 10**6) if name not in tuple(FAMILIES)]
    checkpoint = open_checkpoint(TINY / "qwen3_vl")
    for found, meant in [*MISSPELT.items(), *((name, None) for name in others)]:
        with pytest.raises(InputError) as error:
            find_family(replace(checkpoint, config={"model_type": found}))
        question = f"did you mean {meant!r}? " if meant else ""
        assert f"which lensmith cannot compile; {question}supported: {', '.join(sorted(FAMILIES))}" in str(error.value)
        assert len(str(error.value)) < 500


# Flags of tokens, and words ----------------------------------------------------------------------------------------

SPACED = "a <|im_end|>  b <|im_start|> c"


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava"])
@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", [None, "PreTrainedTokenizerFast"])
def test_flags_of_tokens_are_those_of_transformers(family: str, place: str, kind: str | None, tmp_path: Path) -> None:
    folder = copied(tmp_path / "source", family)
    merge(folder, "tokenizer_config.json", {} if kind is None else {"tokenizer_class": kind})
    values = json.loads((folder / place).read_text())
    tokens = values["added_tokens"] if place == "tokenizer.json" else values["added_tokens_decoder"].values()
    for token in tokens:
        token["rstrip"] = token["content"] == "<|im_end|>"
        token["lstrip"] = token["content"] == "<|im_start|>"
        token["special"] ^= token["content"] in ("<|quad_end|>", "<think>")
    (folder / place).write_text(json.dumps(values))
    reader, ours = (
        auto().AutoProcessor.from_pretrained(folder).tokenizer,
        SourceTokenizer(open_checkpoint(folder)).library,
    )
    theirs = reader(SPACED, add_special_tokens=False)["input_ids"]
    assert ours.encode(SPACED, add_special_tokens=False).ids == theirs
    for number, token in reader.added_tokens_decoder.items():
        assert flags(ours.get_added_tokens_decoder()[number]) == flags(token), token


def flags(token: Any) -> tuple[Any, ...]:
    return token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized


WORDS: dict[str, Edit] = {
    "no normalizer": lambda folder: merge(folder, "tokenizer.json", {"normalizer": None}),
    "bytes alone": lambda folder: merge(
        folder,
        "tokenizer.json",
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    ),
    "a space in front": lambda folder: merge(folder, "tokenizer_config.json", {"add_prefix_space": True}),
}


CLASSES: list[dict[str, Any]] = [
    {"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True},
    {"tokenizer_class": "LlamaTokenizerFast"}, {"tokenizer_class": "TokenizersBackend", "add_prefix_space": True},
    {"tokenizer_class": None},
    {"tokenizer_class": "Qwen2TokenizerFast", "add_bos_token": True, "bos_token": "<|im_end|>"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "case"),
    [(family, case) for family in ("qwen3_vl", "qwen3_5", "llava") for case, config in enumerate(CLASSES)
     if family != "qwen3_5" or "add_prefix_space" not in config],
)  # fmt: skip
def test_classes_of_tokenizers_are_those_of_transformers(family: str, case: int, tmp_path: Path) -> None:
    """Also where they are not what the model type has: each splits words in a way of its own."""
    folder = copied(tmp_path / "source", family)
    merge(folder, "tokenizer_config.json", CLASSES[case])
    theirs, ours = auto().AutoTokenizer.from_pretrained(folder), SourceTokenizer(open_checkpoint(folder)).library
    for text in (
        SPACED,
        "What's 12345 + 6?\n\n It is\r\n  l'\u00e9t\u00e9 caf\u0065\u0301",
        "\u65e5\u672c  \U0001f44d WE'LL",
    ):
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_other_classes_of_tokenizers_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "source")
    merge(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    with pytest.raises(
        InputError, match="tokenizer_class 'BertTokenizer', which lensmith does not know; expected Qwen2"
    ):
        prepare(folder, Options())


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("name", WORDS)
def test_words_that_transformers_would_split_in_another_way(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "source", family)
    WORDS[name](folder)
    with pytest.raises(InputError, match="use the tokenizer files of the model"):
        _ = SourceTokenizer(open_checkpoint(folder)).library
    merge(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    if family == "qwen3_5":  # whose class is taken whatever the file names
        with pytest.raises(InputError, match="use the tokenizer files of the model"):
            _ = SourceTokenizer(open_checkpoint(folder)).library
    else:
        text = "IT'S e\u0301 12"
        theirs = auto().AutoProcessor.from_pretrained(folder).tokenizer(text, add_special_tokens=False)["input_ids"]
        assert SourceTokenizer(open_checkpoint(folder)).library.encode(text, add_special_tokens=False).ids == theirs


def test_a_listed_token_without_a_place_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "source", "qwen3_5")
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    merge(folder, "tokenizer.json", {"added_tokens": [t for t in tokens if t["content"] != "<think>"]})
    with pytest.raises(InputError, match=r"the token '<think>' as number 820, which tokenizer\.json does not have"):
        _ = SourceTokenizer(open_checkpoint(folder)).library


def test_new_tokens_in_any_order(tmp_path: Path) -> None:
    """Listed backwards, they have the numbers of transformers; with a gap between, it would number them otherwise."""
    folder = copied(tmp_path / "source")
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    size += len(json.loads((folder / "tokenizer.json").read_text())["added_tokens"])
    listed = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    token = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    new = {str(size + place): {**token, "content": f"<new{place}>"} for place in (1, 0)}
    merge(folder, "tokenizer_config.json", {"added_tokens_decoder": {**new, **listed}})
    theirs = auto().AutoTokenizer.from_pretrained(folder)
    ours = SourceTokenizer(open_checkpoint(folder)).library
    for place in (0, 1):
        name = f"<new{place}>"
        assert ours.token_to_id(name) == theirs.convert_tokens_to_ids(name) == size + place
    gap = {str(size + 1): {**token, "content": "<new>"}}
    merge(folder, "tokenizer_config.json", {"added_tokens_decoder": {**listed, **gap}})
    with pytest.raises(
        InputError, match=rf"the token '<new>' as number {size + 1}, which tokenizer\.json does not have"
    ):
        _ = SourceTokenizer(open_checkpoint(folder)).library
