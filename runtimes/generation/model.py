"""A loaded bundle: images, videos, prompts and the two graphs behind one object that answers conversations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from ...targets.errors import InputError
from ..bundle.manifest import DECODER, DRAFT_HEAD
from ..bundle.opening import Bundle
from ..dialogue.dialogue_parser import DialogueParser
from ..engines.contract import Decoder, Floats, Ints, OpenedEngines, Vision
from ..engines.engine_table import Wishes, chunk_of, open_decoder, open_engines
from ..engines.native import wanted_kernels
from ..engines.run_wishes import check_wishes, made_of, remade_on_cpu
from ..media.frames import VideoLimits, VideoSource, check_limit_objects
from ..media.image_files import ImageLimits
from ..media.media_encoder import FEATURE_BYTES, MediaEncoder
from ..media.pixels import image_spec
from ..media.sources import ImageSource
from ..media.spaced_video import video_spec
from ..process.cpu import told_if_lacking
from ..process.forks import OfOneProcess, PerProcess
from ..process.interrupt import heeding
from ..prompt.manifest_specs import position_spec, prompt_spec
from ..prompt.messages import SAMPLING as FRAMES
from ..prompt.messages import Messages
from ..prompt.prompt_builder import PromptBuilder, open_prompt
from ..prompt.requests import Request, question_message
from ..prompt.variables import check_objects
from ..tuning.tuning import USUAL, Tuning
from ..values import only, truth, whole
from .answer import Answer, Progress
from .answer_forms import open_forms
from .common_tokens import COMMON, common
from .constraints import Vocabulary
from .conversation import Conversation
from .conversation_pool import CONVERSATIONS, ConversationPool
from .drafting import DraftHead
from .guide import Guide, open_guide
from .hidden_states import HiddenStates, run_for_hidden_states
from .intake import DEFAULT_CONTEXT, Intake, OpenedChat
from .options import OPTIONS, GenerationOptions, with_options
from .prefix_cache import PREFIX_BYTES, PrefixCache
from .raw_prompt import raw_prompt
from .sampling import SamplingOptions
from .shelves import Shelves
from .streaming import TextStream
from .timings import Timings
from .token_loop import TokenLoop

WIDE = (
    "fp32",
    "fp16",
)  # precisions whose weights a session holds in memory of its own, instead of mapped from the file


@dataclass(frozen=True)
class Shared:
    """What the answers of a model share in one process."""

    opened: OpenedEngines
    media: MediaEncoder
    prefixes: PrefixCache
    conversations: ConversationPool


class Model(OfOneProcess):
    """A bundle loaded for answering, several questions at once too: see `Answer`.

    At most `conversations` answers are open at a time, each with a KV cache of its own. Threads wait for one another; a
    thread that would have to wait for itself gets an InputError. A process that is forked later opens engines of its
    own on the CPU, when it is first asked; a model on a GPU must be loaded there.
    """

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
        conversations: int = CONVERSATIONS,
        prefix_bytes: int = PREFIX_BYTES,
        feature_bytes: int = FEATURE_BYTES,
        cache_folder: str | Path | None = None,
        cache_bytes: int | None = None,
        tuning: Tuning = USUAL,
    ) -> None:
        manifest = bundle.manifest
        if DECODER not in manifest.graphs:
            raise InputError(
                f"the bundle {bundle.path} has no decoder: it makes features of images and cannot be asked"
            )
        told_if_lacking(manifest.options.cpu_features)
        self.bundle, self.manifest = bundle, manifest
        self.image_spec = image_spec(manifest).with_pixels(min_pixels=min_pixels, max_pixels=max_pixels)
        self.prompts = open_prompt(bundle.path, prompt_spec(manifest))
        self.positions = position_spec(manifest, self.prompts)
        self.video_spec = video_spec(manifest, max_video_pixels)
        self.eos_token_ids = frozenset(manifest.asked().eos_token_ids)
        capacity = bundle.context(context, "tokens", DEFAULT_CONTEXT)
        self.kernels = wanted_kernels(native)  # lensmith's own; what they lack ONNX Runtime computes
        self.tuning = tuning
        self._wishes = tuning.applied(Wishes(capacity, threads, profile=profile, native=native, device=device))
        check_wishes(bundle, self._wishes)
        check_limit_objects(image_limits, video_limits)
        if not self.image_spec.takes_images and (image_limits or video_limits):
            raise InputError(
                "image_limits and video_limits have no effect on a model that takes text alone; leave them out"
            )
        media = partial(
            MediaEncoder,
            image_spec=self.image_spec,
            video_spec=self.video_spec,
            image_limits=image_limits or ImageLimits(),
            video_limits=video_limits or VideoLimits(frame=image_limits or ImageLimits()),
            threads=self._wishes.threads,
            feature_bytes=whole("feature_bytes", feature_bytes, 0),
        )
        make = partial(_open, wishes=self._wishes, media=media, prompts=self.prompts,
                       conversations=whole("conversations", conversations, 1, 1024),
                       prefix_bytes=whole("prefix_bytes", prefix_bytes, 0),
                       shelves=Shelves(cache_folder, cache_bytes))  # fmt: skip
        self._engines = PerProcess(partial(made_of, bundle, make), remade_on_cpu(bundle, self._wishes, make))

    @property
    def vision(self) -> Vision:
        """The vision encoder in its engine."""
        return self._engines.get().opened.vision

    @property
    def decoder(self) -> Decoder:
        """The decoder in its engine: weights, over which each conversation has its states."""
        return self._engines.get().opened.decoder

    @property
    def media(self) -> MediaEncoder:
        """Opens, cuts and encodes images and videos."""
        return self._engines.get().media

    @property
    def prefixes(self) -> PrefixCache:
        """Copies of what prompts and answers left, from which all conversations go on."""
        return self._engines.get().prefixes

    @property
    def conversations(self) -> ConversationPool:
        """Where each answer takes its conversation from."""
        return self._engines.get().conversations

    def default_options(self, **changes: Any) -> GenerationOptions:
        """The sampling that the checkpoint's generation_config asks for, with changes by name of any option."""
        config = asdict(self.manifest.generation)
        base = GenerationOptions(sampling=SamplingOptions.from_generation_config(config))
        only(changes, (*OPTIONS, "sampling"), "GenerationOptions")
        return with_options(base, changes, config)

    def ask(
        self,
        question: str | None = None,
        images: Iterable[ImageSource] = (),
        options: GenerationOptions | None = None,
        *,
        videos: Iterable[VideoSource] = (),
        **chosen: Any,
    ) -> Answer:
        """Answer one question about images and videos, given as lists.

        `chosen` are as of `generate`, and wishes for the videos: fps, num_frames, nframes, video_start, ... Raises
        InputError as `generate` does.
        """
        wishes = {name: chosen.pop(name) for name in FRAMES if name in chosen}
        return self.generate([question_message(question, images, videos, **wishes)], options, **chosen)

    def generate(self, messages: Messages, options: GenerationOptions | None = None, **chosen: Any) -> Answer:
        """Answer a conversation in the chat format, or a question alone.

        Greedily, unless asked otherwise by `options` or directly by name: `chosen` are the fields of GenerationOptions
        and SamplingOptions (max_new_tokens, stop, temperature, seed, json_schema, ...), which count over `options`;
        min_pixels, max_pixels and max_video_pixels for this call; continue_final_message; tool_choice ("auto", "none",
        "required" or a tool) and parallel_tool_calls as of OpenAI's interface; and the variables of the chat template
        (tools, enable_thinking, ...). Images are encoded and the prompt is processed when the first piece is asked for;
        pixels of files that look whole, and files of videos, are read then, too, so that damage within is an InputError
        of the first piece. Raises InputError for unusable images or messages and for whatever would not
        be obeyed, and ContextFull, one of these, for prompts over the context.
        """
        progress = Progress(Timings())
        given = {name: chosen.pop(name) for name in OPTIONS if name in chosen}
        generation = self._options(options, given)
        choice, parallel = chosen.pop("tool_choice", None), chosen.pop("parallel_tool_calls", None)
        tools = chosen.pop("tools", None)
        tools = None if choice == "none" else tools
        if tools is not None:
            check_objects("tools", tools)
        form, watch = open_forms(generation, tools, choice, parallel, self.prompts, lambda: self._vocabulary)
        chat = self._intake.open(messages, progress.timings, tools=tools, **chosen)
        progress.prompt_ids, thinking = chat.prompt.ids, chat.prompt.thinking
        parser = DialogueParser(self.prompts.speech, tools, thinking=thinking is True)
        budget = generation.thinking_budget
        guide = open_guide(self.prompts, thinking, budget, form, self.eos_token_ids, watch)
        return Answer(self._pieces(chat, generation, progress, guide), progress, parser)

    def complete(
        self,
        prompt: str | Sequence[int] | Ints,
        options: GenerationOptions | None = None,
        *,
        prompt_logprobs: bool = False,
        **chosen: Any,
    ) -> Answer:
        """Go on with a text, or with token ids, as they are: without a chat template and without images.

        `options` and `chosen` are as of `generate`, without variables of the template. With `prompt_logprobs` the
        tokens of the prompt have the probabilities that `logprobs` asks for, too; nothing of it is then taken from a
        cache. Raises InputError as `generate` does.
        """
        only(chosen, tuple(name for name in OPTIONS if name != "thinking_budget"), "complete")
        generation = self._options(options, chosen)
        form, _ = open_forms(generation, None, None, None, self.prompts, lambda: self._vocabulary)
        if truth("prompt_logprobs", prompt_logprobs) and generation.logprobs is None:
            raise InputError("prompt_logprobs are given only with logprobs; give both, or none")
        progress = Progress(Timings(), prompt_logprobs=[] if prompt_logprobs else None)
        raw = raw_prompt(self.prompts, prompt, self.manifest.vocab)
        chat = self._intake.check(OpenedChat(raw), progress.timings)
        progress.prompt_ids = chat.prompt.ids
        guide = open_guide(self.prompts, False, None, form, self.eos_token_ids)
        return Answer(self._pieces(chat, generation, progress, guide), progress)

    def hidden_states(self, messages: Messages, **chosen: Any) -> HiddenStates:
        """The last hidden states [seq, hidden] of a conversation or a text, and the one that stands for all of it.

        `chosen` are the pixel limits and variables of the chat template as of `generate`, and add_generation_prompt,
        which is true unless told. Nothing is kept for later conversations. The first call opens a decoder without a
        draft head anew, with that output. Raises InputError as `generate` does, and for a bundle for a GPU that has no
        draft head.
        """
        request = self.prepare(messages, **chosen)
        return run_for_hidden_states(self.decoder, self.prompts, request, chunk_of(self.bundle, self._wishes))

    def _options(self, base: GenerationOptions | None, given: dict[str, Any]) -> GenerationOptions:
        base = GenerationOptions() if base is None else base
        options = with_options(base, given, asdict(self.manifest.generation))
        if options.draft and self.decoder.recurrent and not self.decoder.drafts:
            raise InputError(
                "draft is true, and this model has recurrent states, which in this engine cannot forget tokens that "
                "were guessed wrong; leave it out"
            )
        return options

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.prompts.tokenizer, self.manifest.vocab, sorted(self.eos_token_ids), self.prompts.tags)

    def prepare(self, messages: Messages, timings: Timings | None = None, **chosen: Any) -> Request:
        """Encode the images, the videos and the text of a conversation; `chosen` and errors as of `generate`."""
        timings = timings or Timings()
        return self._intake.encode(self._intake.open(messages, timings, **chosen), timings)

    @property
    def _intake(self) -> Intake:
        return Intake(self.prompts, self.positions, self.media, self.decoder, self.manifest.limits.context)

    def conversation(self, request: Request | None = None) -> AbstractContextManager[Conversation]:
        """A conversation for steps of one's own, while the context is entered; raises InputError as an answer does.

        It is the one that goes on furthest in the prompt of a request, or without one the latest.
        """
        return self.conversations.take(request)

    def prefill(
        self,
        request: Request,
        *,
        num_logits: int = 1,
        chunk: int | None = None,
        reuse: bool = True,
        head: DraftHead | None = None,
    ) -> Floats:
        """Run a prompt through the decoder, see `Conversation.prefill`; the next answer goes on from what is shared."""
        with self.conversation(request) as conversation:
            logits = conversation.prefill(request, num_logits=num_logits, chunk=chunk, reuse=reuse, head=head)
            return logits.copy()

    @property
    def weights_are_mapped(self) -> bool:
        """Whether one more session over the same weights takes hardly any memory."""
        return bool(self.kernels) and self.manifest.options.precision not in WIDE

    def draft_head(self, request: Request, wished: bool | None = None) -> Decoder | None:
        """The graph of the draft head where it drafts: if that is wished, or by default where it costs little."""
        usual = self.decoder.drafts and self.weights_are_mapped and self.tuning.head_drafts != 0
        if not (usual if wished is None else wished) or DRAFT_HEAD not in self.manifest.graphs:
            return None
        special = min(self.prompts.tokenizer.get_added_tokens_decoder(), default=self.manifest.vocab)
        return (self._narrow_drafts if common(request.prompt.ids, special) else self._drafts).get()

    def open_draft_head(self) -> DraftHead:
        """A multi-token-prediction head for one conversation; InputError when the bundle has none."""
        return DraftHead(self._drafts.get())

    @cached_property
    def _drafts(self) -> PerProcess[Decoder]:
        return self._opened_head(0)

    @cached_property
    def _narrow_drafts(self) -> PerProcess[Decoder]:
        return self._opened_head(COMMON)

    def _opened_head(self, tokens: int) -> PerProcess[Decoder]:
        wishes = replace(self._wishes, profile=False, tokens=tokens)
        make = partial(open_decoder, name=DRAFT_HEAD, wishes=wishes)
        return PerProcess(partial(made_of, self.bundle, make), remade_on_cpu(self.bundle, wishes, make))

    def forget(self) -> None:
        """Drop what earlier prompts left: idle KV caches, copies of states and the features of images.

        What is on disk stays; its folder may be removed while nothing uses it.
        """
        self.conversations.forget()
        self.prefixes.forget()
        self.media.forget()

    def flush(self) -> None:
        """Return when all that is to be kept on disk is there, as it is anyway when the process ends by itself."""
        for shelf in (self.prefixes.shelf, self.media.shelf):
            if shelf is not None:
                shelf.folder.flush()

    def _pieces(
        self, chat: OpenedChat, options: GenerationOptions, progress: Progress, guide: Guide | None = None
    ) -> Generator[str, None, None]:
        """The text of an answer. Nothing refers to the answer itself, which its last reader lets go."""
        with progress.ending():
            with heeding(progress.interrupt):
                request = self._intake.encode(chat, progress.timings)
            del chat  # with the files of its images
            stream = TextStream(self.prompts.tokenizer, options.stop, self.prompts.tags)
            with self.conversation(request) as conversation:
                conversation.follow(self.draft_head(request, options.draft))
                loop = TokenLoop(conversation, request, options, progress, guide, self.eos_token_ids, self.tuning)
                yield from loop.pieces(stream)
            if stream.stopped_by is None and (rest := stream.finish()):
                yield rest


def _open(
    bundle: Bundle,
    *,
    wishes: Wishes,
    media: Callable[..., MediaEncoder],
    prompts: PromptBuilder,
    conversations: int,
    prefix_bytes: int,
    shelves: Shelves,
) -> Shared:
    opened, (states, features) = open_engines(bundle, wishes), shelves.open(bundle, wishes)
    prefixes = PrefixCache(prefix_bytes, states)
    make = partial(Conversation, opened.decoder, prompts, chunk_of(bundle, wishes), prefixes)
    return Shared(opened, media(opened.vision, shelf=features), prefixes, ConversationPool(make, conversations))
