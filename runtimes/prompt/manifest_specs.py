"""What a manifest says of prompts and positions, as the specifications that build them."""

from __future__ import annotations

from msgspec.structs import asdict

from ..bundle.manifest import InputSections
from .positions import PositionSpec
from .prompt_builder import PromptBuilder
from .prompt_parts import PromptSpec


def prompt_spec(inputs: InputSections) -> PromptSpec:
    """The special tokens and end tokens of a manifest."""
    section = inputs.asked()
    return PromptSpec(
        **asdict(section.tokens),
        eos_token_ids=tuple(section.eos_token_ids),
        merge_size=section.merge_size,
        timestamps=inputs.tokens_per_second is None,
        token_ids=section.token_ids,
        bos_token=section.bos_token,
        template_kwargs=section.template_kwargs,
        tiles=section.tiles,
        speech=section.speech,
    )


def position_spec(inputs: InputSections, prompts: PromptBuilder) -> PositionSpec:
    """How the decoder of a manifest counts positions."""
    return PositionSpec(
        prompts.image_token_id,
        prompts.spec.merge_size,
        prompts.video_token_id,
        mrope=inputs.mrope,
        tokens_per_second=inputs.tokens_per_second,
    )
