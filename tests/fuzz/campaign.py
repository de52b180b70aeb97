"""Many mutations in a child process with limits, and a table of what became of them.

python -m tests.fuzz.campaign FOLDER --cases 5000, where FOLDER gets the bundles that are mutated. Every case ends with
exit code 0 (the mutation changed nothing that matters), 1 or 2 (a sentence); a signal, exit code 3, or more than 30
seconds of CPU is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.paths import ROOT, TINY

CPU_SECONDS, WALL_SECONDS = 30, 240
TOLD = 250  # cases between two tables
KINDS = ("manifest", "config", "template", "tokenizer", "graph", "image", "header", "golden")


@dataclass
class Tally:
    """What became of the cases of one kind."""

    codes: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    memory_kb: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, seed: int, answer: Mapping[str, Any]) -> None:
        self.codes[answer["code"]] += 1
        self.seconds = max(self.seconds, answer["seconds"])
        self.memory_kb = max(self.memory_kb, answer["memory_kb"])
        if answer["code"] not in (0, 1, 2) or answer["seconds"] > CPU_SECONDS:
            self.findings.append(f"seed {seed}: {answer}")


class Worker:
    """A child that is started again after it died."""

    def __init__(self, work: Path) -> None:
        self.work, self.child = work, None  # type: Path, subprocess.Popen[str] | None

    def ask(self, case: Mapping[str, Any]) -> dict[str, Any]:
        if self.child is None or self.child.poll() is not None:
            command = [sys.executable, "-m", "tests.fuzz.worker", tempfile.mkdtemp(dir=self.work)]
            settings = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.child = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        child = self.child
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(case) + "\n")
        child.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            ready = selector.select(WALL_SECONDS)
        line = child.stdout.readline() if ready else ""
        if not line:
            child.kill()
            code = child.wait()
            return {
                "code": code if ready else -999,
                "seconds": 0.0,
                "memory_kb": 0,
                "told": "died" if ready else "hung",
            }
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.child is not None and self.child.stdin is not None:
            self.child.stdin.close()
            self.child.wait()


def run_cases(
    cases: Iterable[Mapping[str, Any]], work: Path, tell: Callable[[dict[str, Tally]], None] = lambda _: None
) -> dict[str, Tally]:
    """Run cases (kind, original, seed, media); the tally of each kind, which `tell` gets now and then, too."""
    tallies: dict[str, Tally] = {}
    worker = Worker(work)
    for number, case in enumerate(cases, start=1):
        tallies.setdefault(case["kind"], Tally()).add(case["seed"], worker.ask(case))
        if number % TOLD == 0:
            tell(tallies)
    worker.close()
    return tallies


def spread(originals: Mapping[str, list[Path]], media: Path, cases: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """Cases in equal shares of the kinds that have originals."""
    kinds = [kind for kind in KINDS if originals.get(kind)]
    for index in range(cases):
        kind = kinds[index % len(kinds)]
        seed = first + index // len(kinds)
        original = originals[kind][seed % len(originals[kind])]
        yield {"kind": kind, "seed": seed, "original": str(original), "media": str(media)}


def make_originals(folder: Path) -> dict[str, list[Path]]:
    """Bundles and checkpoints of small models of each family, made where they are missing."""
    from lensmith.exporters.pipeline import Options, export, prepare
    from lensmith.exporters.synth.making import synth

    dialects = (
        ("arlow", "arlow-vision", Options(precision="int8")),
        ("cuda", "tarn-2b", Options(target="cuda")),
        ("tensorrt", "tarn-2b", Options(format="tensorrt", target="rtx-plugin")),
    )
    bundles: list[Path] = []
    others: list[Path] = []
    headers: list[Path] = []
    for family in ("qwen3_vl", "qwen3_5", "llava"):
        for options, kept in ((Options(), bundles), (Options(format="gguf", precision="q8_0"), headers)):
            out = folder / f"{family}-{options.format}"
            if not out.exists():
                export(prepare(TINY / family, options), out, golden="never")
            kept.append(out)
    for name, family, options in dialects:
        if not (folder / name).exists():
            source = synth(family, folder / f"{name}-checkpoint", tiny=True)
            export(prepare(source, options), folder / name, golden="never")
        others.append(folder / name)
    recorded = folder / "golden"
    if not recorded.exists():
        export(prepare(TINY / "qwen3_vl", Options()), recorded, golden="always")
    checkpoints = [TINY / family for family in ("qwen3_vl", "qwen3_5", "llava")]
    answering = [path for path in others if not path.name.startswith("arlow")]
    return {
        **{kind: [*bundles, *others] for kind in ("manifest", "graph")},
        **{kind: [*bundles, *answering] for kind in ("template", "tokenizer", "image")},
        "header": headers, "config": checkpoints, "golden": [recorded],
    }  # fmt: skip


def main() -> None:
    """Run a campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    originals = {kind: paths for kind, paths in make_originals(given.folder).items() if kind in given.kinds}
    media = TINY / "heldout" / "images" / "0001.png"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        tallies = run_cases(spread(originals, media, given.cases, given.first), Path(work), show)
    show(tallies)
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(tally.findings for tally in tallies.values()))


def show(tallies: Mapping[str, Tally]) -> None:
    """Print the table so far."""
    for kind, tally in tallies.items():
        print(f"{kind:10} {sum(tally.codes.values()):5} cases, exit codes {dict(sorted(tally.codes.items()))}, longest "
              f"{tally.seconds:.1f} s of CPU, peak memory {tally.memory_kb / 1000:.0f} MB")  # fmt: skip
        for finding in tally.findings:
            print(f"  {finding}")
    print(flush=True)


if __name__ == "__main__":
    main()
