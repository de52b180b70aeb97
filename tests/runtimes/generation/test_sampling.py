"""Filtered distributions equal those of transformers' logits processors; draws follow them and repeat by seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.generation.sampling import (
    Sampler,
    SamplingOptions,
    distribution,
    penalize,
)
from lensmith.targets.errors import InputError

from tests.helpers import hf

GENERATION_CONFIG = {"do_sample": True, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.0, "temperature": 0.7}


def random_logits(seed: int, vocab: int) -> Any:
    """Logits of several kinds: normal, peaked, flat, with many ties, with masked tokens."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, [0.1, 1.0, 3.0, 10.0][seed % 4], vocab)
    if seed % 5 == 1:
        logits = np.round(logits)
    if seed % 5 == 2:
        logits[random.integers(0, vocab, vocab // 2)] = -np.inf
    if seed % 5 == 3:
        logits[:] = 1.5
    return logits.astype(np.float32)


def has_ties(seed: int) -> bool:
    return seed % 5 in (1, 3)


def hf_scores(logits: Any, history: list[int], options: SamplingOptions) -> Any:
    """The scores after transformers' processors, in the order of GenerationMixin, -inf where removed."""
    transformers = hf.import_transformers()
    import torch

    steps = [transformers.RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
             transformers.TemperatureLogitsWarper(float(options.temperature or 1.0))]  # fmt: skip
    if options.top_k:
        steps.append(transformers.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(transformers.MinPLogitsWarper(options.min_p))
    scores = torch.from_numpy(logits.copy())[None]
    for step in steps:
        scores = step(torch.tensor([history], dtype=torch.long), scores)
    return scores[0].numpy()


OPTIONS = [
    SamplingOptions(do_sample=True),
    SamplingOptions(do_sample=True, temperature=0.7, top_k=20, top_p=0.8),
    SamplingOptions(do_sample=True, temperature=1.3, top_p=0.95),
    SamplingOptions(do_sample=True, top_p=1e-6),
    SamplingOptions(do_sample=True, top_k=1),
    SamplingOptions(do_sample=True, top_k=10**6, top_p=0.5),
    SamplingOptions(do_sample=True, min_p=0.1),
    SamplingOptions(do_sample=True, min_p=1.0, top_k=50),
    SamplingOptions(do_sample=True, temperature=0.05, repetition_penalty=1.3, top_k=40, top_p=0.9, min_p=0.02),
    SamplingOptions(do_sample=True, repetition_penalty=0.8, temperature=2.5, top_p=0.999),
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("vocab", [7, 1000, 20_000])
def test_distribution_equals_transformers(options: SamplingOptions, vocab: int) -> None:
    for seed in range(10):
        logits = random_logits(seed, vocab)
        history = np.random.default_rng(seed).integers(0, vocab, 30).tolist()
        expected = hf_scores(logits, history, options)
        ids, probabilities = distribution(penalize(logits, history, options.repetition_penalty), options)
        wanted = np.exp(expected - expected.max(), dtype=np.float64)
        wanted /= wanted.sum()
        ours = np.zeros(vocab)
        ours[ids] = probabilities
        if has_ties(seed):  # torch.sort leaves the order of equal scores open: compare what is kept by value
            ours, wanted = np.sort(ours), np.sort(wanted)
        differing = np.flatnonzero((ours > 0) != (wanted > 1e-37))
        # With top-p, the rounding of float32 sums decides about the last token, or a few of a long flat tail.
        assert len(differing) <= (vocab // 5000 + 1 if options.top_p < 1 else 0)
        edge = float(np.maximum(ours, wanted)[differing].sum())
        assert np.abs(ours - wanted).max() < 1e-6 + edge


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.1, 2.0])
def test_penalty_and_temperature_equal_transformers_to_the_bit(penalty: float) -> None:
    logits, history = random_logits(1, 500), [1, 1, 2, 400]
    options = SamplingOptions(do_sample=True, repetition_penalty=penalty, temperature=0.7)
    ours = penalize(logits, history, penalty) / np.float32(0.7)
    assert np.array_equal(ours, hf_scores(logits, history, options))


def test_by_hand() -> None:
    """Probabilities 0.1, 0.2, 0.3, 0.4."""
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))

    def kept(**options: Any) -> list[int]:
        return [int(i) for i in distribution(logits, SamplingOptions(do_sample=True, **options))[0]]

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [2, 3]
    assert kept(top_p=0.39) == [3]
    assert kept(top_p=0.5) == [2, 3]
    assert kept(top_p=0.75) == [1, 2, 3]
    assert kept(min_p=0.6) == [2, 3]
    assert penalize(np.array([2, -2, 1], np.float32), [0, 1], 2.0).tolist() == [1, -4, 1]


def test_equal_scores_by_hand() -> None:
    """Probabilities that sum to top-p exactly are enough, and of equal ones the higher ids are kept."""

    def kept(scores: list[float], **options: Any) -> list[int]:
        ids, _ = distribution(np.array(scores, np.float32), SamplingOptions(do_sample=True, **options))
        return [int(i) for i in ids]

    assert kept([0, 0], top_p=0.5) == [1]
    assert kept([0] * 4, top_p=0.5) == [2, 3]
    assert kept([0] * 4, top_p=0.51) == [1, 2, 3]
    assert kept([0, 1, 1, 2], top_k=2) == [1, 2, 3]  # what ties with the last of the best stays
    assert kept([3, -np.inf, -np.inf], top_k=2) == [0]
    assert kept([0, 0, -np.inf], top_k=3) == [0, 1]


def test_greedy_is_argmax_after_the_penalty() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert Sampler(SamplingOptions())(logits) == 1
    assert Sampler(SamplingOptions(repetition_penalty=2.0))(logits, [1]) == 2
    assert logits.tolist() == [1.0, 3.0, 2.0]


def test_seeds_repeat() -> None:
    logits = random_logits(1, 1000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(do_sample=True, temperature=2.0, seed=seed))
        return [sampler(logits) for _ in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_what_a_generation_config_leaves_out_is_as_in_transformers() -> None:
    drawn = SamplingOptions.from_generation_config({"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.2})
    assert (drawn.top_k, drawn.top_p, drawn.min_p, drawn.temperature, drawn.repetition_penalty) == (50, 1, 0, 0.5, 1.2)
    greedy = SamplingOptions.from_generation_config({"do_sample": False, "repetition_penalty": 1.3})
    assert (greedy.do_sample, greedy.repetition_penalty) == (False, 1.3)
    assert int(Sampler(greedy)(np.array([1.2, 1.0], np.float32), [0])) == 1  # 1.2 / 1.3 is less than 1
    cold = SamplingOptions.from_generation_config({"temperature": 0, "do_sample": True, "repetition_penalty": 1.3})
    assert (cold.do_sample, cold.repetition_penalty) == (False, 1.3)
    asked = SamplingOptions.from_generation_config({"temperature": 0}, do_sample=True)
    assert (asked.do_sample, asked.temperature) == (True, 1.0)


def test_options_that_would_not_be_read() -> None:
    assert SamplingOptions(top_p=0.5).temperature == 1.0
    bads: list[tuple[dict[str, Any], str]] = [
        ({"do_sample": False, "top_k": 5}, "top_k"), ({"temperature": 0, "top_p": 0.5}, "top_p"), ({"seed": 1}, "seed"),
    ]  # fmt: skip
    for bad, name in bads:
        with pytest.raises(InputError, match=f"option {name} .* no effect"):
            SamplingOptions(**bad)
    with pytest.raises(InputError, match="float64"):
        Sampler(SamplingOptions())(np.zeros(4))  # type: ignore[arg-type]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    sampler = Sampler(SamplingOptions(do_sample=True, top_k=3, seed=1))
    counts = np.bincount([sampler(logits) for _ in range(9000)], minlength=4)
    assert counts[0] == 0
    assert np.abs(counts[1:] / 9000 - np.array([2, 3, 4]) / 9).max() < 0.02


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[3, 9]] = 0
    sampler = Sampler(SamplingOptions(do_sample=True, top_k=20, seed=1))
    assert {sampler(logits) for _ in range(50)} == {3, 9}


def test_generation_config() -> None:
    options = SamplingOptions.from_generation_config({**GENERATION_CONFIG, "eos_token_id": [1, 2]}, seed=3)
    assert options == SamplingOptions(do_sample=True, top_k=20, top_p=0.8, temperature=0.7, seed=3)
    assert SamplingOptions.from_generation_config({}) == SamplingOptions()
    assert not SamplingOptions.from_generation_config({"do_sample": True, "temperature": 0}).do_sample


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"top_k": -1}, {"top_k": 1.5},
     {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2}, {"repetition_penalty": 0}, {"seed": -1}],
)  # fmt: skip
def test_impossible_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"sampling option {next(iter(bad))} is"):
        SamplingOptions(**bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_overflowed_logits(value: float) -> None:
    logits = np.array([1.0, value, 2.0], np.float32)
    with pytest.raises(InputError, match="overflowed"):
        Sampler(SamplingOptions())(logits)
    with pytest.raises(InputError, match=r"expected float32 \[vocab\]"):
        Sampler(SamplingOptions())(np.zeros((1, 4), np.float32))


def test_a_token_that_was_foreseen_is_chosen() -> None:
    """From the same logits, however far ahead; looking ahead changes nothing of what is drawn."""
    rows = np.random.default_rng(0).normal(0, 2, (20, 50)).astype(np.float32)
    options = SamplingOptions(temperature=0.9, top_k=20, seed=4)
    sampler, plain = Sampler(options), Sampler(options)
    for at in range(0, 20, 4):
        foreseen = [sampler.foresee(rows[at + ahead], ahead) for ahead in (3, 0, 1, 2)]
        chosen = [sampler(rows[at + ahead]) for ahead in range(4)]
        assert chosen == [plain(rows[at + ahead]) for ahead in range(4)]
        assert foreseen == [chosen[ahead] for ahead in (3, 0, 1, 2)]
    greedy = Sampler(SamplingOptions())
    assert greedy.foresee(rows[0], 5) == rows[0].argmax()
