"""One conversation in a decoder: its states, and the tokens and images that these are certain to hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..engines.contract import Decoder, Floats, Ints, States, Step
from ..prompt.prompt_builder import PromptBuilder
from ..prompt.requests import Request
from ..values import whole
from .drafting import DraftHead
from .following_head import FollowingHead
from .headed_states import HeadedStates
from .prefill import chunks, worth_saving
from .prefix_cache import Keepable, PrefixCache
from .token_run import TokenRun

log = logging.getLogger(__name__)


class Conversation:
    """States over the weights that all conversations share, so that the next prompt begins where it parts from these.

    Or from those of any other, as far as `prefixes` has them. One thread at a time may use it. Behind a step that fails
    it is empty or shorter, never wrong.
    """

    def __init__(self, decoder: Decoder, prompts: PromptBuilder, chunk: int, prefixes: PrefixCache) -> None:
        self.decoder, self.prompts, self.chunk, self.prefixes = decoder, prompts, chunk, prefixes
        self.states: States = decoder.open_states()
        self.reused = 0  # tokens of the latest prompt that were there already
        self.head: FollowingHead | None = None  # knows what it can of the tokens in the states
        self.user = threading.current_thread()  # the latest
        self._ids = np.zeros(decoder.capacity, np.int64)  # behind the length of the states without meaning
        self._positions = np.zeros((3, decoder.capacity), np.int64)
        self._images: tuple[tuple[int, bytes], ...] = ()  # as TokenRun's, and of some behind the length
        self._told = True  # whether each image among the tokens came with a key

    @property
    def length(self) -> int:
        """Tokens in the states."""
        return self.states.length

    @property
    def ids(self) -> Ints:
        """The tokens in the states."""
        return self._ids[: self.length]

    @property
    def hidden_states(self) -> Floats:
        """The hidden states [positions, hidden] of the latest step, where the graph gives them."""
        return self.states.hidden_states

    def forget(self) -> None:
        """Begin with nothing."""
        self.rewind(0)

    def rewind(self, length: int) -> int:
        """Forget all tokens behind the first `length`, and more where there is no way back; how many are left."""
        reached = self.states.rewind(whole("length", length, 0))
        if self.head is not None:
            self.head.rewind(reached)
        return reached

    def follow(self, graph: Decoder | None) -> None:
        """Have a draft head go along from now on, or none; in place of another graph of the same head."""
        if graph is None:
            self.head = None
        elif self.head is None:
            self.head = FollowingHead(DraftHead(graph))
        else:
            self.head.use(graph)

    def hear(self, begin: int, count: int) -> None:
        """Tell a draft head the first `count` hidden states of the latest step, which are of tokens from `begin` on."""
        if self.head is not None:
            self.head.hear(begin, self.hidden_states[:count])

    @property
    def tokens(self) -> TokenRun:
        """The tokens in the states with their positions and images."""
        return TokenRun(self._ids, self._positions, self._images).part(0, self.length)

    def reusable(self, request: Request) -> int:
        """Length of the longest common beginning of the states and the prompt, with the same images and positions."""
        return self._shared(TokenRun.of(request))

    def _shared(self, prompt: TokenRun) -> int:
        return self.tokens.common(prompt.part(0, self.length))

    def start(self, request: Request, num_logits: int = 1) -> int:
        """How many tokens of a prompt the states spare, when its last `num_logits` must be computed."""
        return self.states.reach(min(self.reusable(request), len(request.prompt) - num_logits))

    def begin(self, request: Request, num_logits: int = 1) -> int:
        """Go back or on to the longest beginning of a prompt that these or other states spare; how many tokens."""
        prompt, wanted = TokenRun.of(request), len(request.prompt) - num_logits
        own = self.start(request, num_logits)
        found = self.prefixes.find(prompt, wanted, exact=self.states.recurrent)
        if found.length <= own:
            return self.rewind(own)
        known = min(self._shared(prompt), found.length)
        if self.head is not None:
            self.head.rewind(known)
        try:
            reached = self.states.adopt(found.parts, found.positions, found.length, known)
        except (ValueError, KeyError) as error:
            log.warning("what was kept of an earlier prompt does not fit (%s); it is computed again", error)
            self.prefixes.drop(found)
            return self.rewind(0)
        if self.head is not None:
            self.head.adopt(found.parts, reached)
        self._ids[:reached], self._positions[:, :reached] = prompt.ids[:reached], prompt.positions[:, :reached]
        return reached

    def keep(self) -> None:
        """Let other conversations go on from what the states hold now."""
        if self._told:
            self.prefixes.keep(self.tokens, self._kept())

    def _kept(self) -> Keepable:
        """The states, with those of a draft head that goes along."""
        if self.head is None or not self.length:
            return self.states
        last = self.length - 1
        self.head.catch_up(self.ids, int(self._positions[0, last]) - last)
        return HeadedStates(self.states, self.head)

    def prefill(
        self,
        request: Request,
        *,
        num_logits: int = 1,
        chunk: int | None = None,
        reuse: bool = True,
        share: bool = True,
        head: DraftHead | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Floats:
        """Run a prompt through the decoder in chunks; logits [num_logits, vocab] of its last positions.

        Once `stopped` says so it ends between two chunks, with no logits.

        What the states hold of an earlier turn is used again, and what others left. Without `share` nothing of others
        is, and nothing is left for them; without `reuse` all is computed. All logits come from the last chunk, which is
        as long as they are, if not longer. A draft `head` reads what the decoder reads.
        """
        ids = request.prompt.ids
        last = len(ids) - whole("num_logits", num_logits, 1, len(ids))
        chunk = self.chunk if chunk is None else whole("chunk", chunk, 1)
        others = reuse and share and head is None  # a head follows this conversation alone
        start = self.begin(request, num_logits) if others else self.rewind(self.start(request, num_logits) * reuse)
        self.reused = start
        if head is not None:
            head.states.rewind(max(0, start - 1))  # its last entry knew the token behind
        self._images, self._told = TokenRun.of(request).images, reuse and share
        fed, chunk = self.prompts.for_decoder(ids), max(chunk, num_logits)
        stops = worth_saving(request, start, last) if self.states.recurrent else []
        logits: Floats = np.zeros((0, 0), np.float32)
        for begin, end in chunks(start, len(ids), chunk, num_logits, stops):
            if stopped():
                return logits[:0]
            inside = slice(begin, end)
            step = Step(
                ids[inside],
                request.positions[:, inside],
                request.features_between(begin, end),
                num_logits=num_logits if end == len(ids) else 0,
                num_hidden_states=0 if head is None and self.head is None else end - begin,
            )
            logits = self._append(step, fed[inside])
            if head is not None:
                head.follow(fed, request, end, self.hidden_states)
            if self.head is not None:
                self.hear(begin, end - begin)
                self.head.read(fed, request)
            if end in stops:
                self.states.save()
                self.keep()
        if not self.states.recurrent:
            self.keep()
        return logits

    def run(self, step: Step) -> Floats:
        """Append tokens as `Decoder.run` does. Images that come this way are not used again by another prompt."""
        if step.images is not None:
            self._images = tuple((begin, key) for begin, key in self._images if begin < self.length)
            self._told = False
        return self._append(step, step.ids)

    def _append(self, step: Step, fed: Ints) -> Floats:
        """Append tokens, which the decoder is given as `fed`."""
        self.user = threading.current_thread()
        room = self._ids[self.length : self.length + len(step.ids)]
        room[:] = step.ids[: len(room)]
        begin = self.length
        logits = self.decoder.run(self.states, replace(step, ids=fed))
        self._positions[:, begin : self.length] = step.positions
        return logits
