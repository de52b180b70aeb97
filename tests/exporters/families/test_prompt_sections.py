"""What manifests say of prompts and limits: bounds by hand, and files of different models that are told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.checkpoint.tokenizer_files import SourceTokenizer
from lensmith.exporters.families.llava.llava_sections import _check_processor, _limits
from lensmith.exporters.families.prompts import check_patches, pixel_limits, prompt_section
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.spec import ModelSpec
from lensmith.exporters.tower_specs import ClipTowerSpec
from lensmith.runtimes.media.images import ImageSpec
from lensmith.targets.errors import InputError

from tests.paths import TINY

IMAGE = ImageSpec(patch_size=16, merge_size=2, min_pixels=65_536, max_pixels=1_000_000)


@pytest.mark.parametrize(
    ("wish", "least", "most", "tokens"),
    [(None, 65_536, 1_000_000, 976), (1_000_000, 65_536, 1_000_000, 976), (200_000, 65_536, 200_000, 195),
     (65_536, 65_536, 65_536, 64), (40_000, 40_000, 40_000, 39), (1024, 1024, 1024, 1)],
)  # fmt: skip
def test_pixels_of_a_bundle(wish: int | None, least: int, most: int, tokens: int) -> None:
    """One token is 32 x 32 pixels; the checkpoint's least pixels follow a wish below them."""
    assert pixel_limits(IMAGE, wish) == {"min_pixels": least, "max_pixels": most, "max_image_tokens": tokens}


@pytest.mark.parametrize("wish", [1023, 0, -5, 1_000_001])
def test_pixels_beyond_the_checkpoint(wish: int) -> None:
    with pytest.raises(InputError, match=f"max-pixels {wish} is outside the checkpoint's range of 1024 to 1000000"):
        pixel_limits(IMAGE, wish)


@pytest.mark.parametrize("key", ["patch_size", "temporal_patch_size", "merge_size"])
def test_patches_that_the_encoder_does_not_take(key: str) -> None:
    check_patches("a.json", IMAGE, IMAGE)
    other = replace(IMAGE, **{key: getattr(IMAGE, key) + 1})
    words = f"a.json has {key} {getattr(other, key)} but the vision encoder of config.json has {getattr(IMAGE, key)}"
    with pytest.raises(InputError, match=words):
        check_patches("a.json", other, IMAGE)


@pytest.mark.parametrize("number", [-1, 10**6, 2**40, True, "790"])
def test_ids_that_the_tokenizer_does_not_have(number: Any) -> None:
    job = prepare(TINY / "qwen3_vl", Options())
    assert isinstance(job.spec, ModelSpec)
    with pytest.raises(InputError, match=rf"gives image_token the id {number}, which tokenizer\.json does not have"):
        prompt_section(job.checkpoint, SourceTokenizer(job.checkpoint).library, job.spec, {"image_token": number})


def test_tokens_by_role() -> None:
    job = prepare(TINY / "qwen3_vl", Options())
    made = job.sections["prompt"]
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
             "vision_end_token": "<|vision_end|>"}  # fmt: skip
    assert made["tokens"] == names
    config = job.checkpoint.config
    ids = [config[f"{role}_id"] for role in names]
    assert made["token_ids"] == dict(zip(names.values(), ids, strict=True))
    assert (made["merge_size"], made["template"], made["tokenizer"]) == (2, "chat_template.jinja", "tokenizer.json")


def clip(**changes: Any) -> ClipTowerSpec:
    spec = prepare(TINY / "llava", Options()).spec
    assert isinstance(spec, ModelSpec)
    assert isinstance(spec.vision, ClipTowerSpec)
    return replace(spec.vision, **changes)


@pytest.mark.parametrize(
    ("config", "keep_class", "written"),
    [({}, False, 49), ({}, True, 50), ({"num_additional_image_tokens": 1}, False, 49),
     ({"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}, False, 49),
     ({"num_additional_image_tokens": 1, "vision_feature_select_strategy": "full"}, True, 50),
     ({"patch_size": None, "num_additional_image_tokens": 1, "vision_feature_select_strategy": None}, False, 49),
     ({"patch_size": 16}, False, 48), ({"patch_size": 8, "num_additional_image_tokens": 1}, False, 196)],
)  # fmt: skip
def test_image_tokens_that_the_processor_writes(config: dict[str, Any], keep_class: bool, written: int) -> None:
    """112 pixels a side in patches of 16; a processor that says nothing of additional tokens adds none."""
    vision = clip(keep_class=keep_class)
    checkpoint = replace(open_checkpoint(TINY / "llava"), processor_config=config)
    if written == vision.image_tokens:
        _check_processor(checkpoint, vision)
        return
    with pytest.raises(InputError, match=rf"writes {written} image tokens .* gives {vision.image_tokens} features"):
        _check_processor(checkpoint, vision)


@pytest.mark.parametrize(
    ("key", "value"),
    [("patch_size", 0), ("patch_size", "16"), ("patch_size", 1 << 20), ("num_additional_image_tokens", -1),
     ("num_additional_image_tokens", True), ("vision_feature_select_strategy", "cls")],
)  # fmt: skip
def test_what_no_processor_says(key: str, value: Any) -> None:
    checkpoint = replace(open_checkpoint(TINY / "llava"), processor_config={key: value})
    with pytest.raises(InputError, match=f"processor_config.json has {key} {str(value)!r}; expected"):
        _check_processor(checkpoint, clip())


def test_limits_of_images_of_one_size() -> None:
    spec = prepare(TINY / "llava", Options(context=300)).spec
    assert isinstance(spec, ModelSpec)
    assert isinstance(spec.vision, ClipTowerSpec)
    area = 112 * 112
    assert _limits(spec, spec.vision, None) == {"min_pixels": area, "max_pixels": area, "max_image_tokens": 49,
                                                "context": 300}  # fmt: skip


def test_videos_are_taken_where_the_configuration_has_a_token_for_them() -> None:
    """And the checkpoint has settings for their processor."""
    for family, takes in (("qwen3_vl", True), ("qwen3_5", True), ("llava", False)):
        assert ("video" in prepare(TINY / family, Options()).sections) == takes, family
