"""Drafts change how many steps an answer takes, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes import GenerationOptions, Model, load, user_message
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.generation import token_loop
from lensmith.runtimes.generation.answer import Progress
from lensmith.runtimes.generation.draft_pace import LONGEST_PAUSE
from lensmith.runtimes.generation.ngram_drafts import MOST_DRAFTS, NgramDrafts
from lensmith.runtimes.generation.options import CHOOSING
from lensmith.runtimes.generation.sampling import Sampler, SamplingOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.generation.token_loop import TokenLoop
from lensmith.targets.errors import InputError

from tests.helpers.foreseeing import Foreseeing
from tests.helpers.ladder import random_image

VOCAB, PLACEHOLDER = 6, 5


class Scripted:
    """A conversation whose decoder gives logits that depend on all tokens before, and keeps what it was given."""

    def __init__(self, prompt: list[int], capacity: int = 64) -> None:
        self.decoder = SimpleNamespace(capacity=capacity, drafts=True, recurrent=False)
        self.prompts = SimpleNamespace(image_token_id=PLACEHOLDER)
        self.ids, self.places, self.steps, self.reused = list(prompt), list(range(len(prompt))), 0, 0
        self.head = None

    @property
    def length(self) -> int:
        return len(self.ids)

    def logits(self, ids: list[int]) -> Any:
        """Peaked, and often as behind the same two tokens before."""
        random = np.random.default_rng(sum((token + 1) * 7**place for place, token in enumerate(ids[-2:])))
        scores = random.normal(0, 2, VOCAB).astype(np.float32)
        if len(ids) % 5:
            return scores
        return np.roll(scores, 1)

    def hear(self, begin: int, count: int) -> None:
        """The tokens of the latest step that were chosen."""
        assert self.ids[begin : begin + count]

    def prefill(self, *_: Any, **__: Any) -> Any:
        return self.logits(self.ids)[None]

    def run(self, step: Step) -> Any:
        assert step.num_logits == len(step.ids) <= MOST_DRAFTS + 1
        assert len(self.ids) + len(step.ids) <= self.decoder.capacity
        assert PLACEHOLDER not in step.ids
        self.steps += 1
        rows = []
        for token, place in zip(step.ids.tolist(), step.positions[0].tolist(), strict=True):
            self.ids.append(token)
            self.places.append(place)
            rows.append(self.logits(self.ids))
        return np.stack(rows)

    def rewind(self, length: int) -> None:
        del self.ids[length:], self.places[length:]

    def keep(self) -> None:
        pass


class Letters:
    """Each token is a piece of text; some text ends the answer."""

    def __init__(self, stop: str) -> None:
        self.stopped_by: str | None = None
        self._stop, self._text = stop, ""

    def push(self, token: int) -> str:
        self._text += str(token)
        self.stopped_by = self._stop if self._text.endswith(self._stop) else None
        return str(token)


def answered(
    prompt: list[int], options: GenerationOptions, stop: str = "none", capacity: int = 64
) -> tuple[Progress, Scripted]:
    conversation: Any = Scripted(prompt, capacity)
    request: Any = SimpleNamespace(
        prompt=SimpleNamespace(ids=np.array(prompt), __len__=None), next_position=len(prompt)
    )
    request.prompt = np.array(prompt).view(WithIds)
    progress = Progress(Timings())
    stream: Any = Letters(stop)
    for _ in TokenLoop(conversation, request, options, progress, None, {4}).pieces(stream):
        pass
    return progress, conversation


class WithIds(np.ndarray):
    """A prompt: its ids, with a length."""

    @property
    def ids(self) -> Any:
        return np.asarray(self)


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    tokens=st.integers(1, 40),
    capacity=st.integers(31, 64),
    temperature=st.sampled_from([0.0, 1.0]),
    ignore_eos=st.booleans(),
    stop=st.sampled_from(["none", "1", "23"]),
)
def test_the_answer_and_the_states_are_those_without(
    prompt: list[int], tokens: int, capacity: int, temperature: float, ignore_eos: bool, stop: str
) -> None:
    """Whatever the decoder makes of drafts, wherever the answer ends; sampled ones too, with one seed."""
    sampling = SamplingOptions(temperature=1.0, seed=3) if temperature else SamplingOptions()
    options = [
        GenerationOptions(tokens, sampling=sampling, ignore_eos=ignore_eos, draft=draft, logprobs=None)
        for draft in (False, True)
    ]
    (plain, before), (drafted, after) = (answered(prompt, each, stop, capacity) for each in options)
    assert drafted.ids == plain.ids
    assert (drafted.finish_reason, drafted.stopped_by) == (plain.finish_reason, plain.stopped_by)
    assert PLACEHOLDER not in plain.ids
    chosen = [*prompt, *plain.ids]
    assert after.ids == chosen[: len(after.ids)]
    assert after.places == list(range(len(after.ids)))
    assert len(before.ids) <= len(after.ids) <= len(chosen)
    assert drafted.timings.accepted_tokens <= drafted.timings.drafted_tokens
    assert after.steps == before.steps - drafted.timings.accepted_tokens


class Guessing:
    """Knows the scripted logits, but for some noise, and draws from them as the sampler will."""

    def __init__(self, conversation: Scripted, sampler: Sampler) -> None:
        self._conversation, self._sampler = conversation, sampler

    def propose(self, history: Any, room: int) -> list[int]:
        ids, drafts = history.tolist(), list[int]()
        for ahead in range(min(room, 2)):
            logits = self._conversation.logits(ids) + np.random.default_rng(len(ids)).normal(0, 0.3, VOCAB)
            drafts.append(self._sampler.foresee(np.where(np.arange(VOCAB) == PLACEHOLDER, -99, logits), ahead))
            ids.append(drafts[-1])
        return drafts

    def learn(self, drafted: int, accepted: int) -> None:
        pass


def exact(ids: list[int], left: int) -> dict[tuple[int, ...], float]:
    """The probability of each way in which `left` more tokens may follow."""
    if not left:
        return {(): 1.0}
    scores = np.exp(Scripted(ids).logits(ids)[:PLACEHOLDER].astype(np.float64))
    rest = {token: exact([*ids, token], left - 1) for token in range(PLACEHOLDER)}
    shares = scores / scores.sum()
    return {(token, *tail): shares[token] * share for token in rest for tail, share in rest[token].items()}


def test_sampled_answers_have_the_distribution_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers of four tokens, next to their exact probabilities, with drafts that are sampled themselves."""
    prompt, count, drafted, accepted = [1, 2, 3], 4000, 0, 0

    def sources(loop: TokenLoop, sampler: Sampler) -> list[Any]:
        conversation: Any = loop.conversation
        return [Guessing(conversation, sampler)] if loop.options.draft else []

    monkeypatch.setattr(TokenLoop, "_sources", sources)
    found = Counter[tuple[int, ...]]()
    for seed in range(count):
        options = GenerationOptions(
            4, sampling=SamplingOptions(temperature=1.0, seed=seed), ignore_eos=True, draft=True
        )
        progress, _ = answered(prompt, options)
        found[tuple(progress.ids)] += 1
        drafted, accepted = drafted + progress.timings.drafted_tokens, accepted + progress.timings.accepted_tokens
        if seed % 100 == 0:
            assert answered(prompt, replace(options, draft=False))[0].ids == progress.ids
    expected = {ids: count * share for ids, share in exact(prompt, 4).items()}
    common = [ids for ids, number in expected.items() if number >= 5]
    others = sum(expected.values()) - sum(expected[ids] for ids in common)
    rare = count - sum(found[ids] for ids in common)
    squares = sum((found[ids] - expected[ids]) ** 2 / expected[ids] for ids in common) + (rare - others) ** 2 / others
    assert len(common) > 90
    assert squares < len(common) + 4 * (2 * len(common)) ** 0.5  # chi-squared, but for one case in 30,000
    assert drafted / 2 < accepted < drafted


def test_what_repeats_itself_takes_few_steps() -> None:
    drafts = NgramDrafts()
    history = [9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    assert drafts.propose(np.array(history), 99) == [4, 5, 6]
    drafts.learn(3, 3)
    assert drafts.propose(np.array([*history, 4]), 99) == [5, 6, 7, 8, 9, 1]
    drafts.learn(6, 2)
    assert drafts.propose(np.array([*history, 4, 5]), 2) == [6, 7]
    assert NgramDrafts().propose(np.array([1, 1, 1, 1, 1, 1]), 9) == [1, 1, 1]
    assert NgramDrafts({6}).propose(np.array(history), 99) == [4, 5]


def test_drafts_that_are_always_wrong_become_rare() -> None:
    drafts, made = NgramDrafts(), 0
    history = np.ones(2000, np.int64)
    for end in range(1000, 2000):
        proposed = drafts.propose(history[:end], 9)
        made += bool(proposed)
        if proposed:
            drafts.learn(len(proposed), 0)
    assert 1000 / (LONGEST_PAUSE + 1) <= made <= 1000 / LONGEST_PAUSE + 6


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes one of random weights by its architecture and precision, once."""
    folder = tmp_path_factory.mktemp("drafted")

    @cache
    def checkpoint(name: str) -> Path:
        return tiny_checkpoint if name == "qwen3-vl-2b" else synth(name, folder / name, tiny=True)

    @cache
    def make(name: str, precision: str) -> Path:
        job = prepare(checkpoint(name), Options(precision=precision))
        return export(job, folder / f"{name}-{precision}", golden="never").path

    return make


@pytest.mark.parametrize("right", [0, 1, 3, 99])
@pytest.mark.parametrize("precision", ["int4", "fp32"])
@pytest.mark.parametrize("name", ["qwen3-vl-2b", "tarn-2b"])
def test_real_answers(
    bundles: Callable[[str, str], Path], name: str, precision: str, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, probabilities and the next turn, whatever part of the drafts is right; with recurrent states, too."""
    bundle = bundles(name, precision)
    model, other = (load(bundle, threads=1, context=512) for _ in range(2))
    assert isinstance(model, Model)
    assert isinstance(other, Model)
    if precision == "int4" and not model.kernels:
        pytest.skip("without lensmith's kernels the bits of a token depend on those beside it")
    question = user_message("Say it again.", [random_image(64, 64)])
    chosen: dict[str, Any] = {"max_new_tokens": 48, "ignore_eos": True, "logprobs": 2}
    plain = other.generate([question], **chosen, draft=False)
    plain.read()
    begin = plain.timings.prompt_tokens
    monkeypatch.setattr(token_loop, "NgramDrafts", lambda *_: Foreseeing(begin, plain.ids, right))
    drafted = model.generate([question], **chosen)
    drafted.read()
    assert drafted.ids == plain.ids
    assert drafted.timings.drafted_tokens > 30
    assert (drafted.timings.accepted_tokens > 10) == (right > 0)
    assert plain.timings.drafted_tokens == 0
    assert drafted.logprobs is not None
    assert plain.logprobs is not None
    found = np.array([[token.logprob for token in answer] for answer in (drafted.logprobs, plain.logprobs)])
    # Products in fp32 depend on the number of rows, in their last bits.
    assert np.abs(found[0] - found[1]).max() <= (2e-5 if precision == "fp32" else 0)
    monkeypatch.undo()
    again = [question, {"role": "assistant", "content": plain.text}, user_message("And then?")]
    turns = [each.generate(again, max_new_tokens=12, ignore_eos=True, draft=False) for each in (model, other)]
    assert turns[0].read() == turns[1].read()
    assert turns[0].timings.reused_tokens >= turns[1].timings.reused_tokens > 0


def test_draft_is_no_wish_of_sampling(tiny_bundle: Path) -> None:
    assert "draft" not in CHOOSING
    with pytest.raises(InputError, match="draft is 'yes'"):
        load(tiny_bundle, threads=1).ask("Hi", draft="yes")
