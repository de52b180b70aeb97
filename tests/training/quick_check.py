"""Held-out accuracy by task, and how often the MTP head of `qwen3_5` guesses the decoder's next token, in one go.

All tokens of an answer are asked for at once, after the right ones: an answer counts when each is the likeliest, which
is when greedy generation gives it. Many times faster than `evaluate.py`, which generates, through transformers alone.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.paths import TINY
from tests.training.hugging_face import AutoModelForImageTextToText
from tests.training.learners import Learner
from tests.training.train_more import LEARNERS, check


def load_learner(architecture: str, checkpoint: Path) -> Learner:
    """A learner with the model, and the MTP head if it has one, of a checkpoint, in float32."""
    learner: Learner = LEARNERS[architecture](0)
    model_class: Any = AutoModelForImageTextToText
    modules = learner.modules()
    modules["model"].load_state_dict(model_class.from_pretrained(checkpoint, dtype=torch.float32).state_dict())
    if "mtp" in modules:
        tensors = load_file(checkpoint / "model.safetensors")
        modules["mtp"].load_state_dict(
            {name.removeprefix("mtp."): value for name, value in tensors.items() if name.startswith("mtp.")}
        )
    return learner


def main() -> None:
    """Prints the table by task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=sorted(LEARNERS))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=100, help="questions of each task")
    parser.add_argument("--seed", type=int, default=1, help="1 is that of heldout_long, 2 of fresh examples")
    args = parser.parse_args()
    torch.set_num_threads(1)
    learner = load_learner(args.architecture, args.checkpoint or TINY / args.architecture)
    right, accepted = check(learner, args.count, args.seed)
    for task, share in right.items():
        guesses = f", guesses accepted {100 * accepted[task]:5.1f} %" if accepted else ""
        print(f"{task:8} {100 * share:6.1f} %{guesses}")
    average = sum(accepted.values()) / max(1, len(accepted))
    print(f"average  {100 * sum(right.values()) / len(right):6.1f} %, guesses accepted {100 * average:5.1f} %")


if __name__ == "__main__":
    main()
