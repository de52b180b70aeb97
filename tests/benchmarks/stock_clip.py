"""What llama.cpp's own encoder costs a LLaVA in right answers: its bundle asked with either vision encoder.

lensmith export tests/tiny_vlm/llava -o BUNDLE --format gguf --golden never
python tests/benchmarks/stock_clip.py BUNDLE tests/tiny_vlm/heldout_long/tasks.jsonl --limit 20

Of each task with pictures the first `--limit` questions are asked. Pixels, prompts and decoder are the same.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from lensmith.exporters.comparing.cases import Case, read_samples
from lensmith.runtimes import Model
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.engines.llamacpp.llama_vision import LlamaVision
from lensmith.runtimes.media.pixels import image_spec
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.extras import inside


def ask(model: Model, cases: dict[str, list[Case]]) -> dict[str, int]:
    """Right answers by task."""
    model.forget()
    return {
        task: sum(model.ask(case.prompt, case.images).read().strip() == case.answer for case in some)
        for task, some in cases.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    given = parser.parse_args()
    cases: dict[str, list[Case]] = defaultdict(list)
    for case in read_samples(given.tasks):
        if case.images and len(cases[case.task]) < given.limit:
            cases[case.task].append(case)
    model = Model(open_bundle(given.bundle), threads=1)
    most = model.manifest.limits.max_image_tokens
    right = {"lensmith": ask(model, cases)}
    weights, spec = inside(model.decoder).model, image_spec(model.manifest)
    path = model.bundle.graph("mmproj")
    model.media.vision = LlamaVision(path, weights, spec, most_tokens=most, threads=1, exact=False)
    right["llama.cpp"] = ask(model, cases)
    shown = Table("encoder", "right", *cases)
    total = sum(map(len, cases.values()))
    for name, marks in right.items():
        shown.add_row(name, f"{sum(marks.values())} of {total}", *map(str, marks.values()))
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
