"""What the runtime must know about prompts and images: sections of the manifest, read from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict
from tokenizers import Tokenizer

from ...runtimes.media.images import ImageSpec
from ...runtimes.media.video import VideoSpec, video_constants
from ...runtimes.prompt.speech import find_speech
from ...runtimes.prompt.template import ChatTemplate
from ...targets.errors import InputError
from ..checkpoint.end_tokens import end_tokens
from ..checkpoint.folder import Checkpoint
from ..checkpoint.tokenizer_files import SourceTokenizer
from ..spec import ModelSpec

# Config keys of special token ids and the role of each token in the prompt section.
TOKEN_KEYS = {
    "image_token": "image_token_id",
    "video_token": "video_token_id",
    "vision_start_token": "vision_start_token_id",
    "vision_end_token": "vision_end_token_id",
}

# Classes of transformers that do the same; those that it does not have it takes for the usual ones.
IMAGE_CLASSES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
VIDEO_CLASSES = ("", "Qwen3VLVideoProcessor", "Qwen2VLVideoProcessorFast", "Qwen2VLVideoProcessorPil")
PROCESSORS = ("Qwen3VLProcessor",)
STILL_PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")  # the same for images, not for videos

log = logging.getLogger(__name__)


def sections(
    checkpoint: Checkpoint, tokenizer: SourceTokenizer, spec: ModelSpec, max_pixels: int | None
) -> dict[str, dict[str, Any]]:
    """The sections of a model that answers: prompt, image, video where its processors take them, and limits."""
    check_class("image_processor_type", checkpoint.image_settings.get("image_processor_type"), IMAGE_CLASSES)
    check_class("processor_class", checkpoint.processor_class, (*PROCESSORS, *STILL_PROCESSORS))
    made = still_sections(checkpoint, tokenizer, spec, max_pixels)
    return made | ({"video": video_section(checkpoint, spec)} if takes_videos(checkpoint) else {})


def still_sections(
    checkpoint: Checkpoint, tokenizer: SourceTokenizer, spec: ModelSpec, max_pixels: int | None
) -> dict[str, dict[str, Any]]:
    """The sections of a model of images and text, whatever prepares its videos: prompt, image and limits."""
    return {
        "prompt": prompt_section(checkpoint, tokenizer.library, spec),
        "image": image_section(checkpoint, spec),
        "limits": limits_section(checkpoint, spec, max_pixels),
    }


def text_sections(
    checkpoint: Checkpoint, tokenizer: SourceTokenizer, spec: ModelSpec, max_pixels: int | None
) -> dict[str, dict[str, Any]]:
    """The sections of a model without images: prompt and limits."""
    if max_pixels is not None:
        raise InputError(f"max-pixels {max_pixels} has no effect on {spec.family}, which takes no images; leave it out")
    return {
        "prompt": prompt_section(checkpoint, tokenizer.library, spec, {}),
        "image": {"kind": "none"},
        "limits": {"context": spec.decoder.context},
    }


def takes_videos(
    checkpoint: Checkpoint, processors: tuple[str, ...] = PROCESSORS, videos: tuple[str, ...] = VIDEO_CLASSES
) -> bool:
    """Whether transformers would prepare videos by classes that lensmith knows; a warning where it has others."""
    settings = checkpoint.video_preprocessor_config
    if settings is None or checkpoint.config.get("video_token_id") is None:
        return False
    derived = str(settings.get("image_processor_type", "")).replace("Image", "Video")  # of a file made for images
    classes = (checkpoint.processor_class, processors), (settings.get("video_processor_type", derived), videos)
    others = [str(name)[:100] for name, known in classes if name is not None and name not in known]
    if others:
        log.warning("videos are prepared by %s, which lensmith does not know: the bundle takes none", others[0])
    return not others


def check_class(key: str, found: object, known: tuple[str, ...]) -> None:
    """InputError for a class of processors that prepares inputs in another way; None is the usual one."""
    if found is not None and found not in known:
        raise InputError(f"the processor has {key} {str(found)[:100]!r}, not supported; expected {', '.join(known)}")


def prompt_section(
    checkpoint: Checkpoint, tokenizer: Tokenizer, spec: ModelSpec, ids: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Special tokens by name and id, end tokens with their origin, and what the template gets besides the messages.

    `ids` are those of the tokens by their roles; None: as config.json has them. InputError for ids that the tokenizer
    does not have.
    """
    given = {role: checkpoint.config.get(key) for role, key in TOKEN_KEYS.items()}
    ids = {role: number for role, number in given.items() if number is not None} if ids is None else ids
    names = {role: _token(tokenizer, role, number) for role, number in ids.items()}
    ends = end_tokens(checkpoint, tokenizer, spec.decoder.vocab, set(ids.values()))
    speech = {}
    if checkpoint.chat_template is not None:  # else the checkpoint is refused elsewhere
        speech["speech"] = asdict(find_speech(ChatTemplate(checkpoint.chat_template, max_seconds=1)))
    return {
        "template": "chat_template.jinja",
        "tokenizer": "tokenizer.json",
        "tokens": names,
        "token_ids": {names[role]: ids[role] for role in names},
        "eos_token_ids": list(ends),
        "end_tokens": {tokenizer.id_to_token(number) or str(number): places for number, places in ends.items()},
        "merge_size": spec.merge_size,
        "bos_token": checkpoint.special_tokens.get("bos_token"),
        "template_kwargs": dict(checkpoint.special_tokens),
        **speech,
    }


def _token(tokenizer: Tokenizer, role: str, number: int) -> str:
    whole = type(number) is int and 0 <= number < 1 << 32
    name = tokenizer.id_to_token(number) if whole else None
    if name is None:
        raise InputError(
            f"config.json gives {role} the id {str(number)[:100]}, which tokenizer.json does not have; "
            "the two files do not belong together"
        )
    return str(name)


def image_section(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """Constants of image preprocessing; InputError where they contradict the vision encoder."""
    image = ImageSpec.from_config(checkpoint.image_settings)
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
    video = VideoSpec.from_config(checkpoint.video_settings)
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
    limits = pixel_limits(ImageSpec.from_config(checkpoint.image_settings), max_pixels)
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
