"""What the runtime must know about the prompts and images of SmolVLM and Idefics3, read from a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import Tokenizer

from ....runtimes.bundle.input_sections import MOST_TILED, TileImages
from ....runtimes.media.tiles import TileSpec
from ....targets.errors import InputError
from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_files import SourceTokenizer
from ..family import Sections
from ..prompts import check_class, prompt_section
from .siglip_spec import SiglipSpec, SmolModelSpec

PROCESSORS = ("SmolVLMProcessor", "Idefics3Processor")
IMAGE_TOKENS = 169  # of each tile, where the processor's file does not say it
# Words of the prompt by the names that a tokenizer of SmolVLM may give them otherwise.
WORDS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
}
CELL = "<row_{row}_col_{column}>"

log = logging.getLogger(__name__)


def sections(
    checkpoint: Checkpoint, tokenizer: SourceTokenizer, spec: SmolModelSpec, max_pixels: int | None
) -> Sections:
    """The sections of the manifest; InputError where the files of the processor contradict the model."""
    vision = spec.vision
    check_class("processor_class", checkpoint.processor_class, PROCESSORS)
    # The processor writes as many image tokens as the encoder gives features, or PyTorch would refuse them too.
    written = checkpoint.processor_config.get("image_seq_len", IMAGE_TOKENS)
    if written != vision.tile_tokens:
        raise InputError(
            f"processor_config.json has image_seq_len {str(written)[:100]} but the vision encoder of config.json gives "
            f"{vision.tile_tokens} features of each tile; correct image_seq_len or scale_factor"
        )
    image = _image(checkpoint, vision).with_pixels(max_pixels=max_pixels)
    if spec.family == "smolvlm":
        log.warning("videos of %s are not supported yet: the bundle takes pictures and text", spec.family)
    return {
        "prompt": _prompt(checkpoint, tokenizer.library, spec),
        "image": image.to_manifest(),
        "limits": {
            "min_pixels": image.tile**2,
            "max_pixels": image.longest_edge**2 if image.split else image.tile**2,
            "max_image_tokens": _most_tokens(image),
            "context": spec.decoder.context,
        },
    }


def _most_tokens(image: TileSpec) -> int:
    plain = {key: value for key, value in image.to_manifest().items() if key != "kind"}
    most = TileImages(**plain).most_tokens
    if most > MOST_TILED:
        raise InputError(
            f"preprocessor_config.json makes up to {most} tokens of one image, with a longest_edge of "
            f"{image.longest_edge} in tiles of {image.tile}; expected at most {MOST_TILED}"
        )
    return most


def _prompt(checkpoint: Checkpoint, tokenizer: Tokenizer, spec: SmolModelSpec) -> dict[str, Any]:
    section = prompt_section(checkpoint, tokenizer, spec, {"image_token": spec.image_token_id})
    words = dict(WORDS)
    if checkpoint.processor_class != "Idefics3Processor":  # SmolVLM's follows what the tokenizer calls them
        words |= {name: checkpoint.special_tokens[name] for name in WORDS if name in checkpoint.special_tokens}
    if section["tokens"]["image_token"] != words["image_token"]:
        raise InputError(
            f"the processor's image token is {words['image_token'][:100]!r} but config.json numbers "
            f"{section['tokens']['image_token']!r}; use the files of one model"
        )
    tiles = {"around": words["fake_image_token"], "cell": CELL, "whole": words["global_image_token"]}
    return {**section, "tiles": tiles}


def _image(checkpoint: Checkpoint, vision: SiglipSpec) -> TileSpec:
    image = TileSpec.from_config(checkpoint.image_settings, vision.tile_tokens)
    if image.tile != vision.image_size:
        raise InputError(
            f"preprocessor_config.json cuts images into tiles of {image.tile} pixels a side (max_image_size) but the "
            f"vision encoder of config.json takes {vision.image_size}; use the files of one model"
        )
    return image
