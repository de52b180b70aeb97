"""Images of one size equal those of CLIPImageProcessor to the bit, prompts with them equal LlavaProcessor's."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.checked_manifest import inputs_of
from lensmith.runtimes.media.crops import (
    CropSpec,
    center_crop,
    crop,
    crop_grid,
)
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.media.pixels import image_spec
from lensmith.runtimes.prompt.manifest_specs import prompt_spec
from lensmith.runtimes.prompt.messages import find_images
from lensmith.runtimes.prompt.prompt_builder import open_prompt
from lensmith.targets.errors import InputError
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.helpers import hf
from tests.helpers.contents import inputs
from tests.helpers.llava import edit
from tests.runtimes.media.test_images import MODES, noise, random_sizes

CONFIG = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


@cache
def hf_processor(config: str) -> Any:
    return hf.import_transformers().CLIPImageProcessor(**json.loads(config))


def assert_same_as_hf(image: Image.Image, config: dict[str, Any]) -> None:
    processor = hf_processor(json.dumps(config))
    assert processor.backend == "torchvision"  # the one that AutoProcessor loads where torchvision is there
    expected = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"], np.float32)
    pixels, _ = crop(open_image(image), CropSpec.from_config(config, 1))
    assert pixels.dtype == np.float32
    assert pixels.shape == expected.shape
    assert np.array_equal(pixels.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("batch", range(8))
def test_random_sizes_equal_hf(batch: int) -> None:
    draw = random.Random(batch)
    for number, (width, height) in enumerate(random_sizes(25, seed=batch)):
        if max(width, height) <= 200 * min(width, height):
            mode = draw.choice([mode for mode in MODES if not mode.startswith("P+")])
            assert_same_as_hf(MODES[mode](noise(width, height, 4, seed=number)), CONFIG)


def test_the_size_of_results_is_that_of_the_crop() -> None:
    assert CropSpec(None, (60, 60), (48, 40)).size == (48, 40)
    assert CropSpec(None, (60, 52), None).size == (60, 52)
    assert CropSpec(224, None, None).size is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Palette images:UserWarning")
def test_modes_equal_hf(mode: str) -> None:
    for number, (width, height) in enumerate([(90, 70), (33, 140), (512, 300)]):
        assert_same_as_hf(MODES[mode](noise(width, height, 4, seed=number)), CONFIG)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"size": {"height": 40, "width": 56}, "crop_size": {"height": 40, "width": 40}},
    {"size": {"height": 56, "width": 56}, "do_center_crop": False},
    {"size": {"shortest_edge": 30}, "crop_size": {"height": 48, "width": 47}},
    {"size": {"shortest_edge": 100}, "crop_size": {"height": 120, "width": 60}},
    {"do_resize": False, "crop_size": {"height": 65, "width": 96}},
    {"do_normalize": False, **CONFIG},
    {"do_rescale": False, **CONFIG},
    {"do_rescale": False, "do_normalize": False, **CONFIG},
    {"rescale_factor": 1 / 127.5, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.9, 1.1], **CONFIG},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_other_configs_equal_hf(config: dict[str, Any]) -> None:
    for number, (width, height) in enumerate([(17, 9), (300, 420), (420, 77), (48, 48), (1, 1)]):
        assert_same_as_hf(Image.fromarray(noise(width, height, seed=number)), config)


def test_sizes_as_numbers_and_the_manifest() -> None:
    spec = CropSpec.from_config({"size": 48, "crop_size": 40}, 9)
    assert (spec.shortest_edge, spec.cropped, spec.size) == (48, (40, 40), (40, 40))
    section = spec.to_manifest()
    assert section["kind"] == "crop"
    assert image_spec(inputs(image=section)) == spec


@pytest.mark.parametrize(("size", "tokens", "factor"), [((336, 336), 576, 14), ((224, 112), 32, 28), ((4, 4), 400, 1)])
def test_tokens_lie_in_a_row(size: tuple[int, int], tokens: int, factor: int) -> None:
    spec = CropSpec(shortest_edge=size[1], cropped=size, image_tokens=tokens)
    assert spec.factor == factor
    assert crop(Image.new("RGB", (50, 40)), spec)[1] == crop_grid(40, 50, spec) == (1, 1, tokens)


def test_what_is_missing_is_black() -> None:
    planes = np.full((3, 2, 4), 7, np.uint8)
    cropped = center_crop(planes, (5, 2))
    assert cropped[0].tolist() == [[0, 0], [7, 7], [7, 7], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "config",
    [{"size": {"longest_edge": 3}}, {"size": "large"}, {"crop_size": {"shortest_edge": 3}}, {"size": 0},
     {"resample": 0}, {"do_convert_rgb": False}, {"image_std": [0, 1, 1]}, {"image_mean": [1]}, {"do_thumbnail": True},
     {"image_processor_type": "SiglipImageProcessor"}],
    ids=str,
)  # fmt: skip
def test_unusable_configs(config: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CropSpec.from_config(config, 1)


def test_thin_images_are_refused() -> None:
    with pytest.raises(InputError, match="200 times"):
        crop(Image.new("RGB", (402, 2)), CropSpec())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("vqwen3-4b", tmp_path_factory.mktemp("prompts") / "source", tiny=True)


@pytest.fixture(scope="module")
def sections(checkpoint: Path) -> dict[str, Any]:
    job = prepare(checkpoint, Options())
    return job.sections


@pytest.mark.parametrize("seed", range(60))
def test_ids_equal_hf(seed: int, checkpoint: Path, sections: dict[str, Any]) -> None:
    from tests.runtimes.prompt.test_prompt import TOOLS, random_conversation

    draw = random.Random(seed)
    messages, images = random_conversation(draw)
    options: dict[str, Any] = {"tools": draw.choice([None, None, TOOLS]), "add_generation_prompt": draw.random() < 0.7}
    options |= draw.choice([{}, {"enable_thinking": False}])
    builder, spec = open_prompt(checkpoint, prompt_spec(inputs_of(sections))), image_spec(inputs_of(sections))
    assert isinstance(spec, CropSpec)
    grids = [crop(open_image(image), spec)[1] for image in find_images(messages)]
    expected = _hf_ids(checkpoint, messages, options)
    if expected is None:
        with pytest.raises(InputError):
            builder.build(messages, grids, **options)
        return
    prompt = builder.build(messages, grids, **options)
    assert prompt.ids.tolist() == expected
    assert [end - start for start, end in prompt.image_spans] == [576] * len(images)


@cache
def _processor(checkpoint: Path) -> Any:
    return hf.import_transformers().AutoProcessor.from_pretrained(checkpoint)


def _hf_ids(checkpoint: Path, messages: Any, options: dict[str, Any]) -> list[int] | None:
    try:
        made = _processor(checkpoint).apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    except (TypeError, ValueError):
        return None  # the template takes no message without content
    ids: list[int] = made["input_ids"][0]
    return ids


@pytest.mark.parametrize("own", [True, False])
def test_a_beginning_token_stands_once(own: bool, checkpoint: Path, tmp_path: Path) -> None:
    """The tokenizer writes it, unless the template did, as Llama's tokenizers and templates do."""
    _processor(checkpoint)  # skips without transformers
    folder, bos = tmp_path / "source", "<|endoftext|>"
    shutil.copytree(checkpoint, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(f"{bos} $A", None, [(bos, tokenizer.token_to_id(bos))])
    tokenizer.save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer_config.json", bos_token=bos, tokenizer_class="PreTrainedTokenizerFast")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" * own + template, encoding="utf-8")
    job = prepare(folder, Options())
    prompt = job.sections["prompt"]
    messages = [{"role": "user", "content": "Hello there"}]
    ours = open_prompt(folder, prompt_spec(inputs(prompt=prompt))).build(messages).ids.tolist()
    assert ours == _hf_ids(folder, messages, {"add_generation_prompt": True})
    assert ours.count(tokenizer.token_to_id(bos)) == 1
