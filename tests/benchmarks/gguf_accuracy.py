"""What GGUF file types cost a model in right answers and divergence, by what the quantizer knows of importance.

python tests/training/calibration_samples.py --out SAMPLES [--long]
python tests/benchmarks/gguf_accuracy.py CHECKPOINT --samples SAMPLES/tasks.jsonl --held-out HELDOUT/tasks.jsonl

Importance "text" is that of the samples with their pictures left out, as llama.cpp's own tool sees them; "images" is
what `lensmith export --calibrate imatrix` gathers. All run on llama.cpp. KL divergences are in nats from the f32 file,
means over held-out positions. An answer is right when each of its tokens is the likeliest. `--wide` takes the
checkpoint twice as wide (tests/training/widen.py), so that its rows fill the blocks of K-quants.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from lensmith.calibration.calibrated_export import float_model
from lensmith.calibration.importance import gather
from lensmith.calibration.layerwise.prepared_samples import KINDS, Picture, Sample
from lensmith.calibration.samples.sample_preparation import prompts_of
from lensmith.exporters.comparing.cases import Case, read_samples
from lensmith.exporters.formats.gguf.file_types import FILE_TYPES
from lensmith.exporters.formats.gguf.imatrix import Energy
from lensmith.exporters.pipeline import (
    Calibrated,
    Job,
    Options,
    export,
    prepare,
)
from lensmith.runtimes import Model
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines.contract import Floats, ImageFeatures, Step
from lensmith.targets.errors import InputError
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.extras import load
from tests.training.widen import widen

NONE, TEXT, IMAGES = "-", "text", "images"
TYPES = ("f16", "q8_0", "q4_k_m", "q4_0")
Importance = Mapping[str, Mapping[str, Energy]]  # by what was seen


@dataclass
class Score:
    """What one file makes of the held-out samples."""

    kl: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))  # by kind of token
    same: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))  # by task

    @property
    def accuracy(self) -> dict[str, float]:
        return {task: float(np.mean(marks)) for task, marks in self.right.items()}


def importance(checkpoint: Path, cases: Sequence[Case], threads: int) -> Importance:
    """Energies of the samples without and with their pictures."""
    job = prepare(checkpoint, Options(format="gguf", precision="f32"))
    found: dict[str, Mapping[str, Energy]] = {NONE: {}}
    for name, seen in ((TEXT, [replace(case, images=()) for case in cases]), (IMAGES, cases)):
        builder = prompts_of(job)
        samples = [builder.build(case) for case in seen]
        found[name] = gather(float_model(job, threads), samples, builder.pictures)
    return found


def bundles(
    checkpoint: Path, types: Sequence[str], known: Importance, folder: Path
) -> Iterator[tuple[str, str, Bundle]]:
    """A bundle of each type and importance; types without the quantizer know none, and some need it."""
    for precision in types:
        for name, energies in known.items():
            if name == NONE or FILE_TYPES[precision].quantizer:
                job = prepare(checkpoint, Options(format="gguf", precision=precision))
                evidence = {"samples": {"source": name}}
                calibrated = Calibrated(importance=energies, evidence=evidence) if energies else Calibrated()
                made = _export(replace(job, calibrated=calibrated), folder / f"{precision}-{name}")
                yield from [(precision, name, made)] if made else []


def _export(job: Job, out: Path) -> Bundle | None:
    """A bundle; None where llama.cpp does not make one without importance."""
    try:
        return export(job, out, golden="never")
    except InputError:
        if job.calibrated.importance:
            raise
        return None


def log_probabilities(model: Model, sample: Sample, pictures: Mapping[str, Picture]) -> Floats:
    """Of what follows each token but the last [seq - 1, vocab]."""
    seen = [model.vision(pictures[key].patches, pictures[key].grid) for key in sample.pictures]
    model.forget()
    features = ImageFeatures.join(seen) if seen else None
    with model.conversation() as conversation:
        found = conversation.run(Step(sample.ids, sample.positions, features, num_logits=len(sample.ids)))
    logits = found[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def count(score: Score, sample: Sample, expected: Floats, found: Floats) -> None:
    """Add a sample to a score."""
    kl, top = (np.exp(expected) * (expected - found)).sum(axis=1), found.argmax(axis=1)
    for kind, name in enumerate(KINDS):
        chosen = sample.kinds[:-1] == kind
        score.kl[name].append(kl[chosen])
        score.same[name].append((top == expected.argmax(axis=1))[chosen])
    score.right[sample.task].append(bool((top[-sample.answer :] == sample.ids[-sample.answer :]).all()))


def held_out(checkpoint: Path, path: Path, each: int) -> tuple[list[Sample], Mapping[str, Picture]]:
    """Up to `each` samples of a task."""
    builder, counts = prompts_of(prepare(checkpoint, Options(format="gguf", precision="f32"))), Counter[str]()
    samples = []
    for case in read_samples(path):
        counts[case.task] += 1
        if counts[case.task] <= each:
            samples.append(builder.build(case))
    return samples, builder.pictures


def measure(checkpoint: Path, args: argparse.Namespace) -> tuple[dict[tuple[str, str, float], Score], int]:
    """Scores by type, importance and megabytes of the language model, the f32 file first; and the number of samples."""
    samples, pictures = held_out(checkpoint, args.held_out, args.each)
    known = importance(checkpoint, read_samples(args.samples), args.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = list(bundles(checkpoint, ("f32", *args.types), known, Path(folder)))
        models = {
            (kind, name, bundle.file("model.gguf").stat().st_size / 1e6): load(bundle.path, threads=1, context=1024)
            for kind, name, bundle in made
        }
        scores = {key: Score() for key in models}
        for sample in samples:
            found = [log_probabilities(model, sample, pictures) for model in models.values()]
            for score, values in zip(scores.values(), found, strict=True):
                count(score, sample, found[0], values)
    return scores, len(samples)


def row(key: tuple[str, str, float], score: Score, plain: Mapping[str, float]) -> list[str]:
    mean = {name: float(np.concatenate(values).mean()) for name, values in score.kl.items()}
    same = [100 * float(np.concatenate(values).mean()) for values in score.same.values()]
    worst = max((100 * (plain[task] - share), task) for task, share in score.accuracy.items())
    return [
        key[0], key[1], f"{key[2]:.2f} MB", *(f"{value:.5f}" for value in mean.values()),
        " ".join(f"{value:.1f}" for value in same), f"{100 * np.mean(list(score.accuracy.values())):.1f}",
        f"{worst[0]:+.0f} {worst[1]}",
    ]  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--each", type=int, default=100, help="held-out questions of each task")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = widen(args.checkpoint, Path(folder) / "wide") if args.wide else args.checkpoint
        scores, number = measure(path, args)
    table = Table(box=None, title=f"{args.checkpoint.name}{' twice as wide' * args.wide}, {number} held-out questions")
    for name in ("type", "importance", "model", *(f"KL {kind}" for kind in KINDS), "top-1 %", "right %", "most lost"):
        table.add_column(name)
    plain = next(iter(scores.values())).accuracy
    for key, score in scores.items():
        table.add_row(*row(key, score, plain))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
