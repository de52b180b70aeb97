"""Conversations that go on from what others left: the tokens are those of a model that never saw the others."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import Model, user_message
from lensmith.runtimes.engines.contract import Kept, Step
from lensmith.runtimes.engines.states import EngineStates
from lensmith.runtimes.generation.prefill import worth_saving
from lensmith.runtimes.generation.prefix_cache import PrefixCache
from lensmith.runtimes.generation.prefix_shelf import PrefixShelf
from lensmith.runtimes.generation.token_run import TokenRun
from lensmith.runtimes.storage.cache_folder import CacheFolder
from lensmith.targets.errors import InputError

from tests.helpers.extras import load
from tests.helpers.forking import in_threads
from tests.helpers.sessions import ANSWERED, FILES, OPTIONS, SYSTEM, alone, pictures, taken

PICTURES = pictures()
FIRST = user_message("How many circles are there?", [PICTURES[0]])
LATER = user_message("And what colour has this one?", [PICTURES[1]])
# Two questions, one behind the other.
SCENES: dict[str, list[list[dict[str, Any]]]] = {
    "text": [[SYSTEM, user_message("Name three colours.")], [SYSTEM, user_message("Count to three.")]],
    "a picture, another question": [[FIRST], [user_message("What colour is the circle?", [PICTURES[0]])]],
    "a picture in the second turn": [[user_message("Hello? " * 40)], [user_message("Hello? " * 40), ANSWERED, LATER]],
    "the system's message, another picture": [
        [SYSTEM, FIRST],
        [SYSTEM, user_message("How many circles are there?", [PICTURES[2]])],
    ],
}


ONNX = [*itertools.product(("qwen3_vl", "qwen3_5", "llava"), ("fp32", "int4"))]
GGUF = [("qwen3_vl gguf", "f32"), ("qwen3_5 gguf", "f32")]
CASES = [*itertools.product(ONNX, SCENES), (GGUF[0], "a picture, another question"), (GGUF[1], "text")]


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest, trained: Callable[[str, str], Path]) -> Path:
    return trained(*request.param)


@pytest.fixture(scope="module")
def warm(kind: Path) -> Model:
    return load(kind, threads=1, context=1024)


@pytest.fixture(scope="module")
def cold(kind: Path) -> Model:
    return load(kind, threads=1, context=1024, prefix_bytes=0, conversations=1)


def by_others(model: Model) -> None:
    """Let the states of conversations hold something else: only what was copied is left."""
    idle = [model.conversations.take() for _ in range(len(model.conversations._idle))]
    entered = [each.__enter__() for each in idle]
    for conversation, context in zip(entered, idle, strict=True):
        conversation.forget()
        context.__exit__(None, None, None)


@pytest.mark.parametrize(("kind", "scene"), CASES, indirect=["kind"], scope="module")
def test_another_conversation_goes_on(scene: str, warm: Model, cold: Model) -> None:
    """As far as the two have the same tokens and pictures; recurrent states from where a copy was made."""
    first, second = SCENES[scene]
    warm.forget()
    assert taken(warm, first) == (alone(cold, first), 0)
    by_others(warm)
    one, other = (warm.prepare(messages) for messages in (first, second))
    expected = TokenRun.of(one).common(TokenRun.of(other))
    if warm.decoder.recurrent:
        stops = worth_saving(one, 0, len(one.prompt) - 1)
        expected = max((stop for stop in stops if stop <= expected), default=0)
    assert taken(warm, second) == (alone(cold, second), expected)
    assert expected > 16


@pytest.mark.parametrize("kind", [*ONNX, GGUF[1]], indirect=True)
def test_conversations_that_are_open(warm: Model, cold: Model) -> None:
    """Three at once about one picture: the second begins while the first is in the middle of its answer."""
    warm.forget()
    questions = [[user_message(f"What is number {number}?", [PICTURES[0]])] for number in range(3)]
    answers = [warm.generate(messages, OPTIONS) for messages in questions]
    steps = [iter(answer) for answer in answers]
    for step in steps:
        next(step, None)
    for answer in answers:
        answer.read()
    assert [answer.ids for answer in answers] == [alone(cold, messages) for messages in questions]
    ends = [int(warm.prepare(messages).prompt.image_spans[0][1]) for messages in questions]
    reused = [answer.timings.reused_tokens for answer in answers]
    assert reused[0] == 0
    assert all(count >= end - 1 for count, end in zip(reused[1:], ends[1:], strict=True))


class Tokens(EngineStates):
    """States that keep each token itself, and their sum where they are recurrent."""

    sharing = Kept.ROWS

    def __init__(self, *ids: int, recurrent: bool = False) -> None:
        super().__init__(recurrent=recurrent)
        self.rows, self.length = np.array([ids]), len(ids)

    def run(self) -> TokenRun:
        return run_of(*self.rows[0])

    def keep(self, begin: int) -> dict[str, Any]:
        return {"rows": self.rows[:, begin:].copy()}

    def _copy(self) -> Any: ...
    def _restore(self, length: int) -> None: ...


def run_of(*ids: int, images: tuple[tuple[int, bytes], ...] = ()) -> TokenRun:
    return TokenRun(np.array(ids), np.tile(np.arange(len(ids)), (3, 1)), images)


def kept(cache: PrefixCache, *ids: int, recurrent: bool = False) -> None:
    states = Tokens(*ids, recurrent=recurrent)
    cache.keep(states.run(), states)


def held(cache: PrefixCache, *ids: int, exact: bool = False, most: int = 99) -> list[int]:
    """What is kept of the longest beginning."""
    found = cache.find(run_of(*ids), most, exact=exact)
    rows = [row for _, states in found.parts for row in states["rows"][0].tolist()]
    assert rows[: found.length] == list(ids[: found.length])
    return rows[: found.length]


SIZE = 5 * 8  # bytes of a token: its id, three positions and itself


def test_what_conversations_share_is_kept_once() -> None:
    """A prompt that parts from another one in the middle of a segment cuts it in two."""
    cache = PrefixCache(1000 * SIZE)
    begin = range(100, 120)
    kept(cache, *begin, 1, 2, 3)
    kept(cache, *begin, 7, 8)
    assert cache.bytes == 25 * SIZE
    kept(cache, *begin, 7, 8, 9)
    kept(cache, *begin, 1, 2, 3)
    assert cache.bytes == 26 * SIZE
    for rest in ([1, 2, 3], [7, 8, 9], [1, 2], [7], []):
        assert held(cache, *begin, *rest) == [*begin, *rest]
    assert held(cache, *begin, 1, 2, 4) == [*begin, 1, 2]
    assert held(cache, *begin, 1, 2, 3, most=21) == [*begin, 1]
    assert held(cache, 99, *begin) == []


def test_recurrent_states_go_on_at_ends_alone() -> None:
    cache = PrefixCache(1000 * SIZE)
    begin = range(100, 120)
    kept(cache, *begin, recurrent=True)
    kept(cache, *begin, 1, 2, 3, recurrent=True)
    assert held(cache, *begin, 1, 2, 9, exact=True) == [*begin]
    assert held(cache, *begin, 1, 2, 3, exact=True, most=22) == [*begin]
    assert held(cache, *begin, 1, 2, 3, 4, exact=True) == [*begin, 1, 2, 3]
    assert held(cache, *begin[:5], exact=True) == []


def test_the_least_used_go_first_and_none_before_what_follows_it() -> None:
    cache = PrefixCache(60 * SIZE)
    one, two = range(100, 130), range(200, 220)
    kept(cache, *one)
    kept(cache, *one, 1, 2, 3, 4)
    kept(cache, *two)
    assert held(cache, *one) == [*one]  # used: its continuation was not
    kept(cache, *range(300, 310))
    assert cache.bytes == 60 * SIZE
    assert held(cache, *one, 1, 2, 3, 4) == [*one]
    assert held(cache, *two) == [*two]
    kept(cache, *range(400, 461))  # more than all of it
    assert held(cache, *one) == [*one]
    cache.forget()
    assert (cache.bytes, held(cache, *one)) == (0, [])


def test_another_picture_and_another_place_are_other_tokens() -> None:
    tokens = run_of(*range(40), images=((10, b"a"), (30, b"b")))
    for images, common in (
        (tokens.images, 40),
        (((10, b"a"), (30, b"c")), 30),
        (((10, b"c"), (30, b"b")), 10),
        (((10, b"a"),), 30),
        (((10, b"a"), (30, b"b"), (35, b"c")), 35),
        ((), 10),
    ):
        other = run_of(*range(40), images=images)
        assert (tokens.common(other), other.common(tokens)) == (common, common)
    moved = TokenRun(tokens.ids, tokens.positions + (np.arange(40) >= 20), tokens.images)
    assert tokens.common(moved) == 20
    others = moved, tokens.part(0, 39), tokens.part(1, 40), run_of(*range(40))
    assert len({tokens.name(), *(other.name() for other in others)}) == 5


def test_a_finalizer_within_the_cache_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in the thread that it interrupts, which holds the lock."""
    cache, states = PrefixCache(1000 * SIZE), Tokens(1, 2, 3)

    def interrupted(self: Tokens, begin: int) -> dict[str, Any]:
        kept(cache, 7, 8)
        return {"rows": self.rows}

    monkeypatch.setattr(Tokens, "keep", interrupted)
    cache.keep(states.run(), states)
    assert (held(cache, 7, 8), held(cache, 1, 2, 3)) == ([], [1, 2, 3])


def test_threads_share_what_fits(trained: Callable[[str, str], Path]) -> None:
    """More conversations than bytes and states: what is dropped meanwhile is computed again."""
    model = load(trained("qwen3_vl", "int4"), threads=1, context=512, conversations=3, prefix_bytes=150_000)
    questions = [[user_message(f"What is number {number}?", [FILES[number % 2]])] for number in range(4)]
    expected = [taken(model, messages)[0] for messages in questions]
    found, model_cache = dict[int, list[int]](), model.prefixes

    def work(start: int) -> None:
        for step in range(4):
            index = (start + step) % 4
            found[10 * start + index] = taken(model, questions[index])[0]
            assert model_cache.bytes <= model_cache.most_bytes

    in_threads(*(partial(work, start) for start in range(4)))
    assert len(found) == 16
    assert [answer for _, answer in sorted(found.items())] == expected * 4


def test_pictures_that_came_by_hand_are_not_kept(trained: Callable[[str, str], Path]) -> None:
    """Their tokens are those of any picture of the size."""
    model = load(trained("qwen3_vl", "int4"), threads=1, context=512)
    request = model.prepare([FIRST])
    with model.conversation() as conversation:
        whole = slice(0, len(request.prompt))
        images = request.features_between(0, len(request.prompt))
        conversation.run(Step(request.prompt.ids[whole], request.positions[:, whole], images))
        conversation.keep()
    assert model.prefixes.bytes == 0
    model.prefill(request, reuse=False)  # a measurement leaves nothing behind
    assert model.prefixes.bytes == 0


@pytest.mark.parametrize("value", [-1, 1.5, "1GB", True])
def test_sizes_that_are_none(trained: Callable[[str, str], Path], value: Any) -> None:
    with pytest.raises(InputError, match="prefix_bytes is"):
        load(trained("qwen3_vl", "int4"), prefix_bytes=value)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_kept_and_looked_for(seed: int, tmp_path: Path) -> None:
    """In any order, with any limit, in memory and on disk: what is found are the tokens that were asked for."""
    draw, recurrent, most = random.Random(seed), seed % 2 == 1, [0, 500, 3000, 10**6][seed % 4]
    shelf = PrefixShelf(CacheFolder(tmp_path, 60_000, "owner")) if seed % 4 < 2 else None
    cache, known, hits = PrefixCache(most, shelf), [[draw.randrange(3) for _ in range(40)]], 0
    for _ in range(80):
        ids = draw.choice(known)[: draw.randrange(1, 80)] + [draw.randrange(3) for _ in range(draw.randrange(20))]
        known.append(ids)
        if draw.random() < 0.5:
            kept(cache, *ids, recurrent=recurrent)
        else:
            hits += bool(held(cache, *ids, exact=recurrent, most=len(ids) - 1))
        if shelf is not None and draw.random() < 0.1:  # another process
            shelf.folder.flush()
            cache = PrefixCache(most, PrefixShelf(CacheFolder(tmp_path, 60_000, "owner")))
        assert cache.bytes == sum(segment.nbytes for segment in cache._used) <= most
    assert hits > 3
