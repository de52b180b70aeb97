"""A loaded bundle: images, videos, prompts and the two graphs behind one object that answers conversations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.errors import InputError
from .backends import Wishes, open_decoder
from .bundle import Bundle, open_bundle
from .cpu import warn_if_lacking
from .engine import Floats
from .engines import open_engines
from .frames import VideoLimits, VideoSource
from .images import ImageLimits
from .media import MediaEncoder, layout_of
from .messages import SAMPLING as FRAMES
from .messages import Messages
from .mtp import DraftHead
from .native import wanted_kernels
from .options import OPTIONS, GenerationOptions, with_options
from .pixels import image_spec
from .positions import PositionSpec, text_positions
from .prefill import PromptCache, shared
from .prompt import PromptBuilder, PromptSpec, check_context, open_prompt
from .requests import Request, assemble, user_message
from .sampling import Sampler, SamplingOptions
from .sources import ImageSource
from .streaming import TextStream
from .timings import Timings
from .values import only
from .variables import checked_variables
from .video import video_spec
from .wishes import MEDIA_LIMITS

NO_TOKENS = dict.fromkeys(("video_token", "vision_start_token", "vision_end_token"))  # that a model may lack
KEYWORDS = (*OPTIONS, *MEDIA_LIMITS, *FRAMES, "images", "videos", "options", "continue_final_message")
DEFAULT_CONTEXT = 8192  # tokens; costs address space only until they are used


class Answer:
    """One answer while it is made: iterate over it for pieces of text; `ids`, `text` and `timings` grow meanwhile."""

    def __init__(self, pieces: Iterator[str], timings: Timings) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.timings = timings
        self.finish_reason = ""  # "eos", "stop", "length" or "context"
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            yield piece

    def read(self) -> str:
        """The whole text."""
        for _ in self:
            pass
        return self.text


class Model:
    """A bundle loaded for answering. Not for use by several threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        context: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_video_pixels: int | None = None,
        image_limits: ImageLimits | None = None,
        video_limits: VideoLimits | None = None,
        profile: bool = False,
        native: bool | None = None,
        device: str | None = None,
    ) -> None:
        manifest = bundle.manifest
        if "decoder" not in manifest["graphs"]:
            raise InputError(
                f"the bundle {bundle.path} has no decoder: it makes features of images and cannot be asked"
            )
        warn_if_lacking(manifest["options"].get("cpu_features", ()))
        self.bundle, self.manifest = bundle, manifest
        self.image_spec = image_spec(manifest).with_pixels(min_pixels=min_pixels, max_pixels=max_pixels)
        self.prompts = open_prompt(bundle.path, prompt_spec(manifest))
        self.positions = position_spec(manifest, self.prompts)
        self.video_spec = video_spec(manifest, max_video_pixels)
        self.eos_token_ids = frozenset(manifest["prompt"]["eos_token_ids"])
        capacity = bundle.context(context, "tokens", DEFAULT_CONTEXT)
        self.kernels = wanted_kernels(native)  # lensmith's own; what they lack ONNX Runtime computes
        self._wishes = Wishes(capacity, threads, profile, native, device)
        self.vision, self.decoder = open_engines(bundle, self._wishes)
        self.cache = PromptCache(self.decoder, self.prompts, int(manifest["options"]["prefill_chunk"]))
        limits = image_limits or ImageLimits(), video_limits or VideoLimits()
        self.media = MediaEncoder(self.vision, self.image_spec, self.video_spec, *limits)

    def default_options(self, **changes: Any) -> GenerationOptions:
        """The sampling that the checkpoint's generation_config asks for, with changes by name of any option."""
        config = self.manifest["generation"]
        base = GenerationOptions(sampling=SamplingOptions.from_generation_config(config))
        only(changes, (*OPTIONS, "sampling"), "GenerationOptions")
        return with_options(base, changes, config)

    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        options: GenerationOptions | None = None,
        *,
        videos: Sequence[VideoSource] = (),
        **chosen: Any,
    ) -> Answer:
        """Answer one question about images (what `open_image` takes) and videos (what `open_clip` takes).

        `chosen` are as of `generate`, and wishes for the videos: fps, num_frames, nframes, video_start, ...
        """
        wishes = {name: chosen.pop(name) for name in FRAMES if name in chosen}
        return self.generate([user_message(question, images, videos, **wishes)], options, **chosen)

    def generate(self, messages: Messages, options: GenerationOptions | None = None, **chosen: Any) -> Answer:
        """Answer a conversation in the chat format, or a question alone.

        Greedily, unless asked otherwise by `options` or directly by name: `chosen` are the fields of GenerationOptions
        and SamplingOptions (max_new_tokens, stop, temperature, seed, ...), which count over `options`; min_pixels,
        max_pixels and max_video_pixels for this call; continue_final_message; and the variables of the chat template
        (tools, enable_thinking, ...). The prompt is processed when the first piece is asked for. Raises InputError for
        unusable images or messages, prompts over the context, and for whatever would not be obeyed.
        """
        timings = Timings()
        given = {name: chosen.pop(name) for name in OPTIONS if name in chosen}
        generation = with_options(options or GenerationOptions(), given, self.manifest["generation"])
        request = self.prepare(messages, timings, **chosen)
        answer = Answer(iter(()), timings)
        answer._pieces = self._pieces(request, generation, answer)
        return answer

    def prepare(self, messages: Messages, timings: Timings | None = None, **chosen: Any) -> Request:
        """Encode the images, the videos and the text of a conversation; `chosen` and errors as of `generate`."""
        timings = timings or Timings()
        limits = {name: chosen.pop(name) for name in MEDIA_LIMITS if name in chosen}
        variables = checked_variables(chosen, self.prompts.template, KEYWORDS)
        images, videos = self.media.open(messages, timings, limits)
        grids, layouts = [image.grid for image in images], [layout_of(video) for video in videos]
        build = partial(self.prompts.build, messages, grids, layouts, **variables)
        prompt = build()
        check_context(len(prompt), self.decoder.capacity)  # before anything is encoded
        request = assemble(prompt, self.positions, *self.media.encode(images, videos, timings))
        if self.decoder.states.recurrent:
            turns = build(add_generation_prompt=False)
            request = replace(request, turn_end=shared(turns.ids, prompt.ids))
        self.media.trim(request.images)
        timings.prompt_tokens = len(prompt)
        timings.image_tokens, timings.video_tokens = prompt.media_tokens()
        return request

    def prefill(
        self,
        request: Request,
        *,
        num_logits: int = 1,
        chunk: int | None = None,
        reuse: bool = True,
        head: DraftHead | None = None,
    ) -> Floats:
        """Run a prompt through the decoder in chunks; logits [num_logits, vocab] of its last positions.

        What the cache holds from an earlier turn is used again. All logits must come from the last chunk. A draft
        `head` reads what the decoder reads.
        """
        return self.cache.prefill(request, num_logits=num_logits, chunk=chunk, reuse=reuse, head=head)

    @cached_property
    def draft_head(self) -> DraftHead:
        """The multi-token-prediction head, loaded when it is first asked for; InputError when the bundle has none."""
        return DraftHead(open_decoder(self.bundle, "mtp", replace(self._wishes, profile=False)))

    def forget(self) -> None:
        """Drop what earlier prompts left: the content of the KV cache and the features of images."""
        self.cache.forget()
        self.media.forget()

    def _pieces(self, request: Request, options: GenerationOptions, answer: Answer) -> Iterator[str]:
        stream = TextStream(self.prompts.tokenizer, options.stop)
        started = time.perf_counter()
        for token in self._tokens(request, options, answer):
            piece = stream.push(token)
            answer.timings.decode_ms = 1000 * (time.perf_counter() - started) - answer.timings.prefill_ms
            if piece:
                yield piece
            if stream.stopped:
                answer.finish_reason = "stop"
                return
        if rest := stream.finish():
            yield rest

    def _tokens(self, request: Request, options: GenerationOptions, answer: Answer) -> Iterator[int]:
        """Choose tokens until an end token (which is not given), the limit of new tokens or the end of the context."""
        sampler, timings, length = Sampler(options.sampling), answer.timings, len(request.prompt)
        started = time.perf_counter()
        timings.reused_tokens = self.cache.start(request)
        logits = self.prefill(request)
        history = np.empty(min(length + options.max_new_tokens, self.decoder.capacity + 1), np.int64)
        history[:length] = request.prompt.ids
        for index in range(options.max_new_tokens):
            token = sampler(logits[-1], history[: length + index])
            if index == 0:
                timings.prefill_ms = 1000 * (time.perf_counter() - started)
            timings.new_tokens += 1
            answer.ids.append(token)
            history[length + index] = token
            if token in self.eos_token_ids and not options.ignore_eos:
                answer.finish_reason = "eos"
                return
            yield token
            if index + 1 == options.max_new_tokens:
                answer.finish_reason = "length"
                return
            if self.decoder.length == self.decoder.capacity:
                answer.finish_reason = "context"
                return
            positions = text_positions(1, request.next_position + index)
            logits = self.decoder.run(history[length + index : length + index + 1], positions)
            self.cache.ids = history[: length + index + 1]


def load(path: str | Path, **options: Any) -> Model:
    """Load a bundle folder; `options` as of Model: threads, context, limits of pixels and of files."""
    return Model(open_bundle(path), **options)


def prompt_spec(manifest: Mapping[str, Any]) -> PromptSpec:
    """The special tokens and end tokens of a manifest."""
    section = manifest["prompt"]
    return PromptSpec(
        **(NO_TOKENS | section["tokens"]),
        eos_token_ids=tuple(section["eos_token_ids"]),
        merge_size=section["merge_size"],
        token_ids=section["token_ids"],
        bos_token=section.get("bos_token"),
        template_kwargs=section.get("template_kwargs", {}),
    )


def position_spec(manifest: Mapping[str, Any], prompts: PromptBuilder) -> PositionSpec:
    """How the decoder of a manifest counts positions, by the shape of its input."""
    axes = len(manifest["graphs"]["decoder"]["inputs"]["position_ids"]["shape"]) - 1  # [3, batch, seq] or [batch, seq]
    return PositionSpec(prompts.image_token_id, prompts.spec.merge_size, prompts.video_token_id, mrope=axes == 2)
