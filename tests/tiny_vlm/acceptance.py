"""Measures how often the MTP head of `qwen3_5` guesses the decoder's next token, on the answers of the held-out set."""

import argparse
import sys
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.tiny_vlm.learners import HybridLearner
from tests.tiny_vlm.train_more import check

HERE = Path(__file__).parent


def load_learner(checkpoint: Path) -> HybridLearner:
    """The model and its MTP head in float32."""
    learner = HybridLearner(seed=0)
    tensors = {name: value.float() for name, value in load_file(checkpoint / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"]
    ahead = {name.removeprefix("mtp."): tensors.pop(name) for name in list(tensors) if name.startswith("mtp.")}
    learner.model.load_state_dict(tensors)
    learner.head.load_state_dict(ahead)
    return learner


def main() -> None:
    """Prints the table by task, of right answers, too, all of whose tokens are asked at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "qwen3_5")
    parser.add_argument("--count", type=int, default=100, help="answers of each task")
    parser.add_argument("--seed", type=int, default=1, help="1 is the fixed set's")
    args = parser.parse_args()
    right, accepted = check(load_learner(args.checkpoint), args.count, args.seed)
    for task, share in accepted.items():
        print(f"{task:8} accepted {100 * share:5.1f} %, answers right {100 * right[task]:5.1f} %")
    print(f"average  accepted {100 * sum(accepted.values()) / len(accepted):5.1f} %")


if __name__ == "__main__":
    main()
