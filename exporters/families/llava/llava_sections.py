"""What the runtime must know about the prompts and images of LLaVA, read from a checkpoint."""

from __future__ import annotations

from typing import Any

from ....runtimes.media.crops import CropSpec
from ....targets.errors import InputError
from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_files import SourceTokenizer
from ...spec import ClipModelSpec, ModelSpec
from ...tower_specs import ClipTowerSpec
from ..prompts import check_class, prompt_section


def sections(
    checkpoint: Checkpoint, tokenizer: SourceTokenizer, spec: ClipModelSpec, max_pixels: int | None
) -> dict[str, dict[str, Any]]:
    """The sections of the manifest; InputError where the files of the processor contradict the model."""
    vision = spec.vision
    check_class("processor_class", checkpoint.processor_class, ("LlavaProcessor",))
    _check_processor(checkpoint, vision)
    section = prompt_section(checkpoint, tokenizer.library, spec, {"image_token": spec.image_token_id})
    name = section["tokens"]["image_token"]
    expected = checkpoint.processor_config.get("image_token", name)
    if expected != name:
        raise InputError(
            f"processor_config.json has image_token {str(expected)[:100]!r} but config.json numbers {name!r}; "
            "use the files of one model"
        )
    return {
        "prompt": section,
        "image": _image(checkpoint, vision).to_manifest(),
        "limits": _limits(spec, vision, max_pixels),
    }


def _image(checkpoint: Checkpoint, vision: ClipTowerSpec) -> CropSpec:
    spec = CropSpec.from_config(checkpoint.image_settings, vision.image_tokens)
    if spec.size != (vision.image_size, vision.image_size):
        found = "images of their own sizes" if spec.size is None else f"{spec.size[1]} x {spec.size[0]} pixels"
        raise InputError(
            f"preprocessor_config.json makes {found} but the vision tower of config.json takes "
            f"{vision.image_size} x {vision.image_size}; use the files of one model"
        )
    return spec


def _limits(spec: ModelSpec, vision: ClipTowerSpec, max_pixels: int | None) -> dict[str, Any]:
    area = vision.image_size**2
    if max_pixels is not None:
        raise InputError(
            f"max-pixels {max_pixels} has no effect on {spec.family}, whose images all become "
            f"{vision.image_size} x {vision.image_size} pixels; leave it out"
        )
    return {
        "min_pixels": area,
        "max_pixels": area,
        "max_image_tokens": vision.image_tokens,
        "context": spec.decoder.context,
    }


def _check_processor(checkpoint: Checkpoint, vision: ClipTowerSpec) -> None:
    """LlavaProcessor writes as many image tokens as the tower gives features, or PyTorch would refuse them too."""
    config = checkpoint.processor_config
    patch = _whole(config, "patch_size", 1) or vision.patch_size
    strategy = config.get("vision_feature_select_strategy") or ("full" if vision.keep_class else "default")
    if strategy not in ("default", "full"):
        raise InputError(f"processor_config.json has vision_feature_select_strategy {str(strategy)[:100]!r}; expected "
                         "'default' or 'full'")  # fmt: skip
    more = _whole(config, "num_additional_image_tokens", 0)
    more = more if more is not None else 0 if config else 1
    written = (vision.image_size // patch) ** 2 + more - int(strategy == "default")
    if written != vision.image_tokens:
        raise InputError(
            f"processor_config.json writes {written} image tokens (patch_size {patch}, num_additional_image_tokens "
            f"{more}, {strategy!r}) but the vision tower of config.json gives {vision.image_tokens} features; "
            "correct patch_size, num_additional_image_tokens or vision_feature_select_strategy"
        )


def _whole(config: dict[str, Any], key: str, least: int) -> int | None:
    found = config.get(key)
    if found is not None and (type(found) is not int or not least <= found < 1 << 20):
        raise InputError(f"processor_config.json has {key} {str(found)[:100]!r}; expected a whole number from {least}")
    return found
