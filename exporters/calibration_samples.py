"""Samples to calibrate on: a folder of images, a JSONL file, or a generated set; and which of them are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..targets.errors import InputError
from .cases import QUESTIONS, Case, photo, read_samples, spread_over_tasks

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
HELD_OUT = 4  # every fourth sample is judged, and never calibrated on
SIZES = ((320, 256), (256, 320), (448, 336), (224, 224))  # width, height of generated pictures


@dataclass(frozen=True)
class SampleSet:
    """Samples in a fixed order, by what they are for."""

    source: str  # "built-in", or the name of the file or folder
    calibrated: tuple[Case, ...]
    held_out: tuple[Case, ...]
    sha256: str  # of all questions, answers and files of pictures, in this order

    @property
    def count(self) -> int:
        return len(self.calibrated) + len(self.held_out)


def choose_samples(source: Path | None, scratch: Path, *, limit: int, seed: int) -> SampleSet:
    """Up to `limit` samples to calibrate on, as many of each task as can be, and a third as many to judge.

    The order follows from the content and the seed alone; copies of a sample count once. Raises InputError for unusable
    files, for too few samples and for none with a picture.
    """
    wanted = limit + max(1, limit // (HELD_OUT - 1))
    cases = _generated(scratch, seed, wanted) if source is None else _read(source)
    name = "built-in" if source is None else source.resolve().name
    different = {case_key(case, seed): case for case in reversed(cases)}  # no copy of what is judged is calibrated on
    ordered = [different[key] for key in sorted(different)]
    ordered = [ordered[index] for index in spread_over_tasks(ordered, wanted)]
    held = ordered[HELD_OUT - 1 :: HELD_OUT]
    used = [case for index, case in enumerate(ordered) if index % HELD_OUT != HELD_OUT - 1]
    if not held:
        raise InputError(f"{name} has {len(ordered)} different samples; calibration needs {HELD_OUT} at least, one of "
                         "them held out: add some")  # fmt: skip
    if not picture_count(used):
        raise InputError(f"{name} has no picture among the {len(used)} samples to calibrate on, so nothing would tell "
                         "how image tokens are rounded best; add samples with images")  # fmt: skip
    digest = hashlib.sha256("".join(case_key(case) for case in (*used, *held)).encode()).hexdigest()
    return SampleSet(name, tuple(used), tuple(held), digest)


def _read(source: Path) -> list[Case]:
    if source.is_dir():
        lists = sorted(source.glob("*.jsonl"))
        return [case for path in lists for case in read_samples(path)] if lists else list(_pictures(source))
    return read_samples(source)


def _pictures(folder: Path) -> Iterator[Case]:
    """One question about each picture of a folder, in turn of the built-in ones."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no pictures and no .jsonl file; expected pictures, or lines of JSON with "
                         "images, prompt and, if known, answer")  # fmt: skip
    questions = [question for images, question in QUESTIONS if images == 1]
    for index, path in enumerate(paths):
        yield Case("pictures", (str(path.resolve()),), questions[index % len(questions)])


def _generated(scratch: Path, seed: int, count: int) -> list[Case]:
    """Generated photos with questions; every fifth sample is a question alone."""
    alone = [question for images, question in QUESTIONS if not images]
    about = [question for images, question in QUESTIONS if images == 1]
    cases = []
    scratch.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        if index % 5 == 4:
            cases.append(Case("text", (), f"{alone[index % len(alone)]} ({index})"))
            continue
        path = scratch / f"photo-{seed}-{index}.png"
        photo(SIZES[index % len(SIZES)], seed=1000 * seed + index).save(path)
        cases.append(Case("pictures", (str(path),), about[index % len(about)]))
    return cases


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
