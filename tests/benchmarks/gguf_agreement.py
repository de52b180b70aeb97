"""GGUF files on llama.cpp next to PyTorch in float32, for random and trained models of each family, on text and images.

python tests/benchmarks/gguf_agreement.py [--types f32 f16] [--cases 12] [--models tiny_vlm/qwen3_vl ...]

Both sides get the same tokens and patches, and each its own features of images. Of the logits at all text positions:
the least cosine, mean and largest KL divergence from PyTorch in nats, and the share with the same likeliest token.
Greedy: how many answers of 16 tokens are the same, token by token. `features` is the largest relative error of image
features.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lensmith.exporters.comparing.cases import Case, read_tasks
from lensmith.exporters.comparing.distributions import compare_with, log_softmax
from lensmith.exporters.comparing.runners import BundleRunner, PyTorchRunner, text_mask
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.engines.contract import Floats
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.prompt.requests import Request
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1]
TRAINED = ("tiny_vlm/qwen3_vl", "tiny_vlm/qwen3_5", "tiny_vlm/llava")
RANDOM = ("qwen3-vl-2b", "tarn-2b", "nemotron-4b", "vqwen3-4b")
QUESTIONS = TESTS / "tiny_vlm" / "heldout_long" / "tasks.jsonl"
TOKENS = 16


@dataclass
class Agreement:
    """What is alike over some prompts."""

    features: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)

    def row(self) -> list[str]:
        """As cells of the table."""
        features = f"{max(self.features):.1e}" if self.features else ""
        return [features, f"{min(self.cosine):.7f}", f"{np.mean(self.kl):.1e}", f"{max(self.kl):.1e}",
                f"{100 * np.mean(self.same):.2f}", f"{sum(self.greedy)}/{len(self.greedy)}"]  # fmt: skip


def checkpoints(names: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Trained models by their folder, random ones made small."""
    for name in names:
        yield name, TESTS / name if name in TRAINED else synth(name, folder / name, tiny=True)


def prompts(count: int) -> dict[str, list[Case]]:
    """Questions without and with pictures, spread over the tasks."""
    cases = read_tasks(QUESTIONS, -(-count // 2))
    kinds = {"text": [c for c in cases if not c.images], "images": [c for c in cases if c.images]}
    return {kind: found[:: max(1, len(found) // count)][:count] for kind, found in kinds.items()}


def compare(ours: BundleRunner, theirs: PyTorchRunner, cases: Sequence[Case]) -> Agreement:
    """The agreement over some questions."""
    found = Agreement()
    for case in cases:
        one, other = ours.prepare(case), theirs.prepare(case)
        found.features += _features(one, other)
        positions = np.flatnonzero(text_mask(other))
        values, expected = ours.logits(one, positions), theirs.logits(other, positions)
        found.cosine += _cosines(values, expected)
        kl, same = compare_with(log_softmax(expected), log_softmax(values))
        found.kl += kl
        found.same += same
        found.greedy.append(ours.greedy(one, TOKENS) == theirs.greedy(other, TOKENS))
    return found


def _features(one: Request, other: Request) -> Iterator[float]:
    for ours, theirs in zip(one.images, other.images, strict=True):
        yield relative_error(ours.features.features, theirs.features.features)


def _cosines(one: Floats, other: Floats) -> list[float]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    cosines: list[float] = ((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).tolist()
    return cosines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=("f32", "f16"))
    parser.add_argument("--models", nargs="+", default=[*RANDOM, *TRAINED])
    parser.add_argument("--cases", type=int, default=12, help="questions with and without pictures each")
    args = parser.parse_args()
    table = Table(box=None)
    for name in ("model", "file", "prompts", "features", "cosine", "KL mean", "KL max", "top-1 %", "greedy"):
        table.add_column(name)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in checkpoints(args.models, Path(folder)):
            for precision in args.types:
                out = Path(folder) / f"{path.name}-{precision}"
                bundle = export(prepare(path, Options(format="gguf", precision=precision)), out, golden="never")
                ours, theirs = (
                    BundleRunner(bundle.path, threads=1),
                    PyTorchRunner(path, out, dtype="float32", threads=1),
                )
                for kind, cases in prompts(args.cases).items():
                    table.add_row(name, precision, kind, *compare(ours, theirs, cases).row())
                print(".", end="", file=sys.stderr, flush=True)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
