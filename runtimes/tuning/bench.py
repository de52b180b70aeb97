"""Where settings of a bundle are tried: one model at a time, asked the same question again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from ...targets.errors import ContextFull
from ..bundle.opening import Bundle
from ..engines.contract import Floats
from ..engines.engine_table import LLAMACPP, ONNX, engines_of
from ..generation.drafted_steps import DraftedSteps
from ..generation.encoder import Encoder
from ..generation.loading import answers
from ..generation.model import Model
from ..generation.timings import Timings
from ..prompt.messages import Messages
from ..prompt.requests import user_message
from .rehearsals import Guesses
from .tuning import Tuning

CONTEXT = 4096  # tokens, or the bundle's limit
# Width and height: of the first whose tokens fit in the context. Larger ones take minutes.
SIZES = ((448, 336), (224, 168))
QUESTION, WORDS = "Describe this image.", "one two three four five six seven eight "
BRIEF: Messages = [user_message(WORDS)]  # where the speed behind the first token is all that counts


@dataclass(frozen=True)
class Run:
    """One answer, or the features of an image, which are all there is to wait for."""

    first_token_s: float
    token_s: float = 0.0  # of each further one
    ids: tuple[int, ...] = ()

    @property
    def whole_s(self) -> float:
        """An answer of 64 tokens."""
        return self.first_token_s + 63 * self.token_s


class Bench:
    """A bundle with an image of the given size (width, height); None: the largest of SIZES that fits."""

    def __init__(self, bundle: Bundle, *, device: str | None, size: tuple[int, int] | None, tokens: int) -> None:
        self.bundle, self.device, self.tokens = bundle, device, tokens
        self._size, self._tuning = size, Tuning()
        self._opened: Model | Encoder | None = None

    @property
    def answers(self) -> bool:
        """Whether there is a decoder."""
        return answers(self.bundle)

    @cached_property
    def splits_threads(self) -> bool:
        """Whether single tokens may have another number of threads than prompts, at no cost in memory."""
        engines = engines_of(self.bundle, self.device)
        return LLAMACPP in engines or (set(engines) == {ONNX} and self.model(Tuning()).weights_are_mapped)

    def model(self, tuning: Tuning) -> Model:
        """The bundle, opened with this tuning."""
        self.open(tuning)
        assert isinstance(self._opened, Model)
        return self._opened

    def open(self, tuning: Tuning) -> bool:
        """Open the bundle with a tuning; whether it was not already."""
        if self._opened is not None and _of_loading(self._tuning) == _of_loading(tuning):
            return False
        self._opened = None  # before the next one takes memory
        if self.answers:
            context = min(CONTEXT, self.bundle.manifest.limits.context)
            self._opened = Model(self.bundle, context=context, device=self.device, tuning=tuning, prefix_bytes=0)
        else:
            self._opened = Encoder(self.bundle, device=self.device, tuning=tuning)
        self._tuning = tuning
        return True

    @cached_property
    def question(self) -> Messages:
        """A question about an image, or in words alone for a model that takes no images."""
        model = self.model(Tuning())
        if not model.image_spec.takes_images:
            return self.long_question
        for size in [self._size] if self._size else SIZES[:-1]:
            message = user_message(QUESTION, [picture(size)])
            try:
                if len(model.prepare([message]).prompt) + self.tokens <= model.decoder.capacity or self._size:
                    return [message]
            except ContextFull:
                if self._size:
                    raise
        return [user_message(QUESTION, [picture(SIZES[-1])])]

    @cached_property
    def long_question(self) -> Messages:
        """Words of as many tokens as the bundle computes at once, or as there is room for."""
        model = self.model(Tuning())
        room = model.decoder.capacity - self.tokens - len(model.prepare([user_message(WORDS)]).prompt)
        wanted = min(self.bundle.manifest.options.prefill_chunk, room)
        each = len(model.prompts.tokenizer.encode(WORDS * 10, add_special_tokens=False).ids) / 10
        return [user_message(WORDS * max(1, int(wanted / each)))]

    def run(self, tuning: Tuning, messages: Messages | None, guesses: Guesses, answer: Sequence[int], most: int) -> Run:
        """Ask a question with nothing kept of earlier ones; None: encode the image."""
        self.open(tuning)
        if isinstance(self._opened, Encoder):
            made = self._opened.image(picture(self._size or SIZES[0]))
            return Run((made.image_ms + made.vision_ms) / 1000)
        return _answer(self.model(tuning), messages or self.question, self.tokens, guesses, answer, most)


def _of_loading(tuning: Tuning) -> Tuning:
    """What counts when a model is opened; its drafts are rehearsed."""
    return replace(tuning, ngram_drafts=None, head_drafts=None)


def _answer(model: Model, messages: Messages, tokens: int, guesses: Guesses, answer: Sequence[int], most: int) -> Run:
    model.forget()
    timings = Timings()
    request = model.prepare(messages, timings)
    begin = len(request.prompt)
    history = np.concatenate([request.prompt.ids, np.zeros(tokens, np.int64)])
    with model.conversation(request) as conversation:
        sources = guesses(model, conversation, request, answer, most)
        started = time.perf_counter()
        history[begin] = _likeliest(model, conversation.prefill(request)[-1])
        first = time.perf_counter()
        with closing(DraftedSteps(conversation, request.next_position, timings, sources)) as steps:
            for end in range(begin + 1, begin + tokens):
                history[end] = _likeliest(model, steps.run(history[:end], begin + tokens - end))
        done = time.perf_counter()
        conversation.follow(None)
    waited = (timings.image_ms + timings.vision_ms) / 1000
    return Run(waited + first - started, (done - first) / max(1, tokens - 1), tuple(history[begin:].tolist()))


def _likeliest(model: Model, logits: Floats) -> int:
    """The id with the highest of `logits` [vocab], but for the token of images."""
    scores, image = logits.copy(), model.prompts.image_token_id
    if image >= 0:
        scores[image] = -np.inf
    return int(scores.argmax())


def picture(size: tuple[int, int]) -> Image.Image:
    """Smooth shades of this size (width, height), as a camera's."""
    width, height = size
    shades = np.random.default_rng(0).integers(0, 255, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC)
