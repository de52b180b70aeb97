"""Measures a checkpoint's held-out accuracy by task, through transformers' own classes and greedy `generate`.

`python tests/training/evaluate.py` asks the fixed held-out set; `--fresh 300` draws 300 examples a task from another
seed. Square pictures and long answers: `--heldout tests/tiny_vlm/heldout_long`, `--fresh 300 --long`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.paths import TINY
from tests.training.hugging_face import AutoModelForImageTextToText, AutoProcessor
from tests.training.long_tasks import ALL_TASKS, square_examples
from tests.training.scenes import TASKS, heldout_examples

FRESH_SEED = 2  # the fixed set has seed 1
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Case:
    """One question about no, one or two pictures."""

    task: str
    images: list[Image.Image]
    prompt: str
    answer: str


def read_cases(folder: Path) -> Iterator[Case]:
    """The held-out set as `scenes.py` wrote it."""
    for line in (folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        images = [Image.open(folder / name).convert("RGB") for name in row["images"]]
        yield Case(row["task"], images, row["prompt"], row["answer"])


def fresh_cases(count: int, seed: int = FRESH_SEED, *, long: bool = False) -> Iterator[Case]:
    """`count` new held-out examples a task; `long` has square pictures and the tasks with long answers, too."""
    tasks, make_examples = (ALL_TASKS, square_examples) if long else (TASKS, heldout_examples)
    for task in tasks:
        for example in make_examples(task, count, seed):
            asked = example.questions[0]
            yield Case(task, example.images, asked.prompt, asked.answer)


class Answerer:
    """A loaded checkpoint that answers in float32 on the CPU."""

    def __init__(self, checkpoint: Path) -> None:
        processor_class: Any = AutoProcessor
        model_class: Any = AutoModelForImageTextToText
        self.processor = processor_class.from_pretrained(checkpoint)
        self.model = model_class.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def inputs(self, case: Case) -> Any:
        """The processor's tensors; the pictures come before the prompt in the user's turn."""
        content = [{"type": "image", "image": image} for image in case.images]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": case.prompt}]}
        text = self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        return self.processor(text=[text], images=case.images or None, return_tensors="pt")

    def answer(self, case: Case) -> str:
        """The text of the greedy answer."""
        inputs = self.inputs(case)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answer: str = self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer


def measure(answerer: Answerer, cases: Iterable[Case], *, show: int = 0) -> dict[str, float]:
    """The share of exact answers by task; prints the first `show` wrong ones of each task."""
    right: dict[str, list[bool]] = {}
    for case in cases:
        said = answerer.answer(case)
        marks = right.setdefault(case.task, [])
        marks.append(said == case.answer)
        if said != case.answer and marks.count(False) <= show:
            print(f"{case.task}: {case.prompt!r} wants {case.answer!r}, said {said!r}")
    return {task: sum(marks) / len(marks) for task, marks in right.items()}


def main() -> None:
    """Prints the table of accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=TINY / "qwen3_vl")
    parser.add_argument("--heldout", type=Path, default=TINY / "heldout")
    parser.add_argument("--fresh", type=int, metavar="COUNT", help="draw new examples instead of the fixed set")
    parser.add_argument("--long", action="store_true", help="new examples as in heldout_long")
    parser.add_argument("--show", type=int, default=0, metavar="COUNT", help="wrong answers to print for each task")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    started = time.monotonic()
    cases = fresh_cases(args.fresh, long=args.long) if args.fresh else read_cases(args.heldout)
    shares = measure(Answerer(args.checkpoint), cases, show=args.show)
    shares["average"] = sum(shares.values()) / len(shares)
    if args.json:
        print(json.dumps(shares))
        return
    for task, share in shares.items():
        print(f"{task:8} {100 * share:6.1f} %")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
