"""What the runtime must know about prompts and images: sections of the manifest, read from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from ..runtimes.images import ImageSpec
from ..runtimes.video import VideoSpec, video_constants
from ..targets.errors import InputError
from .checkpoint import Checkpoint
from .end_tokens import end_tokens
from .spec import ModelSpec

# Config keys of special token ids and the role of each token in the prompt section.
TOKEN_KEYS = {
    "image_token": "image_token_id",
    "video_token": "video_token_id",
    "vision_start_token": "vision_start_token_id",
    "vision_end_token": "vision_end_token_id",
}


def sections(checkpoint: Checkpoint, spec: ModelSpec, max_pixels: int | None) -> dict[str, dict[str, Any]]:
    """The sections of a model that answers: prompt, image, video where the checkpoint has it, and limits."""
    made = {
        "prompt": prompt_section(checkpoint, spec),
        "image": image_section(checkpoint, spec),
        "limits": limits_section(checkpoint, spec, max_pixels),
    }
    takes_videos = checkpoint.video_preprocessor_config and checkpoint.config.get("video_token_id") is not None
    return made | ({"video": video_section(checkpoint, spec)} if takes_videos else {})


def prompt_section(checkpoint: Checkpoint, spec: ModelSpec, ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Special tokens by name and id, end tokens with their origin, and what the template gets besides the messages.

    `ids` are those of the tokens by their roles; None: as config.json has them. InputError for ids that the tokenizer
    does not have.
    """
    given = {role: checkpoint.config.get(key) for role, key in TOKEN_KEYS.items()}
    ids = ids or {role: number for role, number in given.items() if number is not None}
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_path))
    names = {role: _token(tokenizer, role, number) for role, number in ids.items()}
    ends = end_tokens(checkpoint, tokenizer, spec.decoder.vocab, set(ids.values()))
    return {
        "template": "chat_template.jinja",
        "tokenizer": "tokenizer.json",
        "tokens": names,
        "token_ids": {names[role]: ids[role] for role in names},
        "eos_token_ids": list(ends),
        "end_tokens": {tokenizer.id_to_token(number) or str(number): places for number, places in ends.items()},
        "merge_size": spec.vision.merge_size,
        "bos_token": checkpoint.special_tokens.get("bos_token"),
        "template_kwargs": dict(checkpoint.special_tokens),
    }


def _token(tokenizer: Tokenizer, role: str, number: int) -> str:
    name = tokenizer.id_to_token(number)
    if name is None:
        raise InputError(
            f"config.json gives {role} the id {number}, which tokenizer.json does not have; "
            "the two files do not belong together"
        )
    return str(name)


def image_section(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """Constants of image preprocessing; InputError where they contradict the vision encoder."""
    image = ImageSpec.from_config(checkpoint.preprocessor_config)
    check_patches("preprocessor_config.json", image, spec.vision)
    return image_constants(image)


def image_constants(image: ImageSpec) -> dict[str, Any]:
    """What a manifest says about images besides their limits."""
    return {
        "patch_size": image.patch_size,
        "temporal_patch_size": image.temporal_patch_size,
        "merge_size": image.merge_size,
        "mean": list(image.mean),
        "std": list(image.std),
        "rescale_factor": image.rescale_factor,
    }


def video_section(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """Constants of video preprocessing; InputError where they contradict the vision encoder."""
    video = VideoSpec.from_config(checkpoint.video_preprocessor_config)
    check_patches("video_preprocessor_config.json", video.patches, spec.vision)
    return video_constants(video)


def check_patches(file: str, patches: ImageSpec, vision: object) -> None:
    """Raise InputError where the sizes of patches in the settings of a processor are not those of a vision encoder."""
    for key in ("patch_size", "temporal_patch_size", "merge_size"):
        if getattr(patches, key) != getattr(vision, key):
            raise InputError(
                f"{file} has {key} {getattr(patches, key)} but the vision encoder of config.json "
                f"has {getattr(vision, key)}; use the files of one model"
            )


def limits_section(checkpoint: Checkpoint, spec: ModelSpec, max_pixels: int | None) -> dict[str, Any]:
    """Bounds of what the bundle accepts: pixels of an image after resizing, image tokens, context in tokens."""
    limits = pixel_limits(ImageSpec.from_config(checkpoint.preprocessor_config), max_pixels)
    return {**limits, "context": spec.decoder.context}


def pixel_limits(image: ImageSpec, max_pixels: int | None) -> dict[str, int]:
    """The pixel range of an image and its most tokens; InputError for a wish over the checkpoint's range.

    The least pixels of the checkpoint follow a wish below them, down to one image token.
    """
    most = image.max_pixels if max_pixels is None else max_pixels
    if not image.factor**2 <= most <= image.max_pixels:
        raise InputError(
            f"max-pixels {most} is outside the checkpoint's range of {image.factor**2} to {image.max_pixels} pixels"
        )
    return {
        "min_pixels": min(image.min_pixels, most),
        "max_pixels": most,
        "max_image_tokens": most // image.factor**2,
    }
