"""Samples to calibrate on: a folder of images, a JSONL file, or built-in ones, mixed; and which are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...exporters.comparing.cases import Case, read_samples, spread_over_tasks
from ...targets.errors import InputError
from .builtin.kinds import BuiltinSamples, Ways
from .builtin.questions import ANY

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
HELD_OUT = 4  # every fourth sample is judged, and never calibrated on
TRIES = 4  # built-in samples that are drawn for each that is wanted
BUILT_IN = 3  # every third sample is built-in, beside those of a user
QUESTIONS = 4  # about each picture of a folder, of which as many as are wanted are taken


@dataclass(frozen=True)
class SampleSet:
    """Samples in a fixed order, by what they are for."""

    source: str  # "built-in", or the name of the file or folder
    calibrated: tuple[Case, ...]
    held_out: tuple[Case, ...]
    foreign: tuple[Case, ...]  # of kinds that are not calibrated on, to be judged
    own: tuple[Case, ...]  # those of the user among the first two
    sha256: str  # of all questions, answers and files of pictures, in this order

    @property
    def count(self) -> int:
        return len(self.calibrated) + len(self.held_out)


def choose_samples(
    source: Path | None,
    scratch: Path,
    *,
    limit: int,
    seed: int,
    ways: Ways,
    only: bool = False,
    fits: Callable[[Case], bool] = lambda _: True,
) -> SampleSet:
    """Up to `limit` samples to calibrate on, as many of each task as can be, and a third as many to judge.

    Half as many again are judged of built-in kinds that are never calibrated on, whatever `source` is. Built-in samples
    that a model's context does not fit are left out.

    Built-in samples of all kinds take a third of the places, and those that `source` leaves, unless `only` its own are
    wanted; their pictures go to `scratch`. The order follows from the content and the seed alone; copies of a sample
    count once. Raises InputError for unusable files, for too few samples and, for a model that takes pictures, for none
    with one.
    """
    wanted = limit + max(1, limit // (HELD_OUT - 1))
    own = [] if source is None else _spread(_read(source), seed, wanted if only else wanted - wanted // BUILT_IN)
    name = "built-in" if source is None else source.resolve().name
    if source is not None and len(own) < HELD_OUT:
        raise InputError(f"{name} has {len(own)} different samples; calibration needs {HELD_OUT} at least, one of "
                         "them held out: add some")  # fmt: skip
    built_in = BuiltinSamples(scratch, seed, ways)

    def drawn(kinds: Collection[str], count: int) -> list[Case]:
        return [*islice(filter(fits, islice(built_in.cases(kinds), TRIES * count)), count)]

    ordered = _spread([*own, *drawn(built_in.taught, 0 if only else wanted - len(own))], seed, wanted)
    used, held = _split(ordered)
    if ways.pictures and not picture_count(used):
        raise InputError(
            f"{name} has no picture among the {len(used)} samples to calibrate on, so nothing would tell how image "
            "tokens are rounded best; add samples with images, or leave out --only-samples"
        )
    foreign = tuple(drawn(built_in.held_back, max(2, len(held) // 2)))
    digest = hashlib.sha256("".join(case_key(case) for case in (*used, *held, *foreign)).encode()).hexdigest()
    users = set(map(case_key, own))
    return SampleSet(name, tuple(used), tuple(held), foreign, tuple(c for c in ordered if case_key(c) in users), digest)


def _split(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Samples to calibrate on, and those held out: every fourth, with all others about its pictures.

    A picture that was calibrated on says nothing of how others will do. Of one that more than a fourth of the samples
    are about, some questions are held out nonetheless.
    """
    used: list[Case] = []
    held: list[Case] = []
    for group in _about_the_same(cases):
        for part in [group] if HELD_OUT * len(group) <= len(cases) else [[case] for case in group]:
            later = len(used) + len(held) + len(part)
            (held if HELD_OUT * (len(held) + len(part)) <= later else used).extend(part)
    return used, held


def _about_the_same(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases in groups, in order of their first ones: no picture, nor a copy of it, is in two of them."""
    above: dict[str, str] = {}  # of pictures and cases, up to one that stands for the group (union-find)

    def top(name: str) -> str:
        while (higher := above.setdefault(name, name)) != name:
            name = higher
        return name

    groups: dict[str, list[Case]] = {}
    names = [str(index) for index in range(len(cases))]
    for name, case in zip(names, cases, strict=True):
        for path in case.images:
            above[top(hashlib.sha256(Path(path).read_bytes()).hexdigest())] = top(name)
    for name, case in zip(names, cases, strict=True):
        groups.setdefault(top(name), []).append(case)
    return [*groups.values()]


def _spread(cases: Sequence[Case], seed: int, count: int) -> list[Case]:
    """Up to `count` different cases, as many of each task as can be, in an order by content and seed."""
    different = {case_key(case, seed): case for case in reversed(cases)}  # no copy of what is judged is calibrated on
    ordered = [different[key] for key in sorted(different)]
    return [ordered[index] for index in spread_over_tasks(ordered, count)]


def _read(source: Path) -> list[Case]:
    if source.is_dir():
        lists = sorted(source.glob("*.jsonl"))
        return [case for path in lists for case in read_samples(path)] if lists else list(_pictures(source))
    return read_samples(source)


def _pictures(folder: Path) -> Iterator[Case]:
    """Some questions about each picture of a folder, in turn of those that can be asked about any."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no pictures and no .jsonl file; expected pictures, or lines of JSON with "
                         "images, prompt and, if known, answer")  # fmt: skip
    for index, path in enumerate(paths):
        for turn in range(QUESTIONS):
            question = ANY[(index + turn * (len(ANY) // QUESTIONS)) % len(ANY)]
            yield Case("pictures", (str(path.resolve()),), question)


def case_key(case: Case, seed: int = 0) -> str:
    """The same for the same question, answer and files of pictures, wherever these lie."""
    said = [seed, case.task, case.prompt, case.answer, case.tools, case.free]
    digest = hashlib.sha256(json.dumps(said).encode())
    for path in case.images:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def picture_count(cases: Sequence[Case]) -> int:
    """Pictures in all samples."""
    return sum(len(case.images) for case in cases)
