"""What can be tuned: one row for each setting, with the values to try and the figure that decides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..bundle.manifest import DRAFT_HEAD
from ..engines.engine_table import Wishes, chunk_of
from ..generation.mtp_drafts import MOST_DRAFTS as MOST_OF_HEAD
from ..generation.ngram_drafts import MOST_DRAFTS as MOST_OF_TEXT
from ..process.core_limits import usable_cores
from ..prompt.messages import Messages
from .bench import BRIEF, Bench
from .rehearsals import Guesses, nothing, of_head, of_text
from .tuning import Tuning

FIRST, FURTHER, WHOLE = "first_token_s", "token_s", "whole_s"  # figures of a Run, all of them the less the better
LEAST_CHUNK = 64  # tokens: fewer rows than a product needs for its speed
FEW_CORES = 8  # up to so many each number is tried
Decided = Mapping[str, tuple[str, ...]]  # fields of Tuning by the figure of a Run that decides them


@dataclass(frozen=True)
class Tunable:
    """A setting: what it is called, what it decides, and how a value of it is tried beside the usual one."""

    name: str
    decides: Callable[[Bench], Decided]
    values: Callable[[Bench], Iterable[int]]
    usual: Callable[[Bench], int]
    question: Callable[[Bench], Messages | None]
    guesses: Guesses = nothing
    lacks: Callable[[Bench], str | None] = lambda _: None  # why there is nothing to try


def _threads_decide(bench: Bench) -> Decided:
    if not bench.answers:
        return {FIRST: ("threads",)}
    if bench.splits_threads:
        return {FIRST: ("threads",), FURTHER: ("decode_threads",)}
    return {WHOLE: ("threads", "decode_threads")}


def _threads(_: Bench) -> Iterable[int]:
    """Each number up to the physical cores, or of many those that double or add a half; not what is usual."""
    cores = usable_cores()
    steps = {times << power for times in (2, 3) for power in range(cores.bit_length())}
    tried = {n for n in range(1, cores) if n <= FEW_CORES or n in steps}
    return sorted((tried | {cores}) - {os.cpu_count()})


def _chunks(bench: Bench) -> Iterable[int]:
    """No more than the bundle was planned for, whose memory grows with it."""
    usual = chunk_of(bench.bundle, Wishes())
    return [each for each in (usual // 2, usual // 4) if each >= LEAST_CHUNK]


def _no_answers(bench: Bench) -> str | None:
    return None if bench.answers else "the bundle has no decoder"


def _no_drafts(bench: Bench) -> str | None:
    if not bench.answers:
        return _no_answers(bench)
    drafts = bench.model(Tuning()).decoder.drafts
    return None if drafts else "its engine drafts nothing unless it is told to"


def _no_head(bench: Bench) -> str | None:
    if (lacks := _no_drafts(bench)) is not None:
        return lacks
    if DRAFT_HEAD not in bench.bundle.manifest.graphs:
        return "the bundle has no draft head"
    mapped = bench.model(Tuning()).weights_are_mapped
    return None if mapped else "a draft head drafts only over weights of a few bits, by lensmith's kernels"


TUNABLES = (
    Tunable("threads", _threads_decide, _threads, lambda _: os.cpu_count() or 1,
            lambda bench: bench.question if bench.answers else None),
    Tunable("chunk", lambda _: {FIRST: ("chunk",)}, _chunks, lambda bench: chunk_of(bench.bundle, Wishes()),
            lambda bench: bench.long_question, lacks=_no_answers),
    Tunable("ngram_drafts", lambda _: {FURTHER: ("ngram_drafts",)}, lambda _: (0, 1, 2, 4), lambda _: MOST_OF_TEXT,
            lambda _: BRIEF, of_text, _no_drafts),
    Tunable("head_drafts", lambda _: {FURTHER: ("head_drafts",)}, lambda _: (0, 1, 2, 3), lambda _: MOST_OF_HEAD,
            lambda _: BRIEF, of_head, _no_head),
)  # fmt: skip
