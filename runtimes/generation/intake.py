"""What a model is asked, checked and made ready for its decoder: first all that may be refused, then the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..engines.contract import Decoder
from ..media.media_encoder import MediaEncoder
from ..media.medium import Medium, layout_of
from ..media.wishes import MEDIA_LIMITS
from ..prompt.messages import SAMPLING as FRAMES
from ..prompt.messages import Messages, another_conversation
from ..prompt.positions import PositionSpec
from ..prompt.prompt_builder import PromptBuilder, check_context
from ..prompt.prompt_parts import Prompt
from ..prompt.requests import Request, assemble
from ..prompt.variables import checked_variables
from .options import OPTIONS
from .prefill import shared
from .timings import Timings

DEFAULT_CONTEXT = 8192  # tokens; costs address space only until they are used
OF_TOOLS = ("tool_choice", "parallel_tool_calls")
KEYWORDS = (*OPTIONS, *MEDIA_LIMITS, *FRAMES, *OF_TOOLS, "images", "videos", "options", "continue_final_message")


@dataclass(frozen=True)
class OpenedChat:
    """A conversation that was checked, whose images and videos are not encoded yet; places as of Request."""

    prompt: Prompt
    images: Sequence[Medium] = ()
    videos: Sequence[Medium] = ()
    system_end: int = 0
    turn_end: int = 0


@dataclass(frozen=True)
class Intake:
    """Takes conversations of one model."""

    prompts: PromptBuilder
    positions: PositionSpec
    media: MediaEncoder
    decoder: Decoder
    most_context: int  # tokens that the bundle takes

    def open(self, messages: Messages, timings: Timings, **chosen: Any) -> OpenedChat:
        """Check all of a conversation and encode its text; `chosen` and errors as of `Model.generate`."""
        limits = {name: chosen.pop(name) for name in MEDIA_LIMITS if name in chosen}
        variables = checked_variables(chosen, self.prompts.template, KEYWORDS)
        images, videos = self.media.open(messages, timings, limits)
        grids, layouts = [image.grid for image in images], [layout_of(video) for video in videos]
        build = partial(self.prompts.build, messages, grids, layouts, **variables)
        chat = self.check(OpenedChat(build(), images, videos), timings)
        if not self.decoder.recurrent:
            return chat
        other, turns = (
            self.prompts.build(another_conversation(messages), **variables),
            build(add_generation_prompt=False),
        )
        system_end, turn_end = (shared(part.ids, chat.prompt.ids) for part in (other, turns))
        return replace(chat, system_end=system_end, turn_end=turn_end)

    def check(self, chat: OpenedChat, timings: Timings) -> OpenedChat:
        """The same, with its tokens counted; ContextFull where there are too many."""
        capacity, most = self.decoder.capacity, self.most_context
        larger = f"load with a larger context=N (--context N), up to {most}; it is {DEFAULT_CONTEXT} by default"
        full = "export it with a larger --context, as this bundle takes no more"
        check_context(len(chat.prompt), capacity, larger if capacity < most else full)
        timings.prompt_tokens = len(chat.prompt)
        timings.image_tokens, timings.video_tokens = chat.prompt.media_tokens()
        return chat

    def encode(self, chat: OpenedChat, timings: Timings) -> Request:
        """The conversation with the features of its images and videos."""
        encoded, clips = self.media.encode(chat.images, chat.videos, timings)
        request = assemble(chat.prompt, self.positions, encoded, clips)
        self.media.trim([*encoded, *(frame for clip in clips for frame in clip.frames)])
        return replace(request, system_end=chat.system_end, turn_end=chat.turn_end)
