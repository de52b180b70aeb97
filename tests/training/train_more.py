"""Trains the other tiny models: `python tests/training/train_more.py qwen3_5|llava|caller --out FOLDER [--resume]`.

The first two start from the trained `qwen3_vl`. `qwen3_5` takes over its vision tower and embeddings, and learns its
decoder and MTP head anew. `llava` takes over decoder and embeddings, and learns its CLIP tower anew, taught by the
other's. `caller` goes on from the trained `qwen3_5`.

The committed checkpoints of both are one run each, stopped and resumed while the recipe took its form, on one core each
that other work shared: `qwen3_5` in about two and a half hours, `llava` in two and a quarter. A longer plan of steps
raises the rates again. `qwen3_5` has 4,020 steps of plans of 1,375, 2,400 (left at 2,095), 3,800 (left at 3,226), 4,700
(left at 3,434), 4,200 (left at 3,635) and 4,020. Before:

- to step 300: rows words 9, shapes 9, compare 4, copy 2, describe 3; to 500: 6, 8, 4, 6, 3; to 640: 6, 11, 4, 2, 3;
- to step 1020: no early answers of the first full attention, which broke a plateau of `colour` at 70 %;
- the tower learned in about 25 steps after step 1125;
- to step 1150: lines to copy instead of `recite`, two rows of them to step 640;
- to step 2095: rows words 5, shapes 9, compare 4, copy 1, describe 2, recite 1; then 5 of compare and 3 of describe;
- to step 3226: no `hard` questions, which brought counts of a colour from 63 % to 90 %; compare 7, describe 2 since;
- to step 3434: no loss of the picture that image tokens belong to, which they then knew to 75 %;
- to step 3635: weights of 1 for `compare`, of 1 and then 1.5 for long tasks; rows words 5, shapes 9, 8 and 7.

`llava` has 5,000 steps of plans of 2,445, 3,600 (left at 3,397) and 5,000: to step 575 apart, to 1820 the tower alone,
then together. Before:

- to step 1925: rows words 18, shapes 10, compare 4, copy 1, describe 4, recite 3 of tower and decoder together;
- to step 1985: half the rate for the decoder, no greater weight for long tasks;
- to step 2170: lines to copy instead of `recite`, of which it never learned how the next line begins;
- to step 3397: rows words 26, shapes 6, compare 3, copy 1, describe 4, recite 3.

The whole recipe from step 0 in one go has not been run.

`caller` is not among the committed checkpoints: no plan of its steps has been run to a model that does all its errands.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.training.batches import IGNORED
from tests.training.caller import CallerLearner
from tests.training.learners import HybridLearner, Learner, LlavaLearner, answer_loss
from tests.training.train import MATRIX_RATE, OTHER_RATE, SAVE_SECONDS, schedule
from tests.training.trees import Tree

LEARNERS: dict[str, Callable[[int], Learner]] = {
    "qwen3_5": HybridLearner,
    "llava": LlavaLearner,
    "caller": CallerLearner,
}
AHEAD_WEIGHT = 0.3  # of the MTP head's loss
CHECK_STEPS, CHECK_SEED, CHECK_COUNT = 250, 3, 16


class Trainer:
    """A learner, its optimizers and the step they have reached."""

    def __init__(self, learner: Learner, steps: int, seed: int) -> None:
        self.learner, self.steps, self.seed, self.step = learner, steps, seed, 0
        self.optimizers = make_optimizers(learner)
        self.parameters = [parameter for parameter, _, _ in learner.rates()]
        self.accuracy = torch.zeros(len(learner.packer.tasks))
        self.ahead = 0.0

    def advance(self) -> tuple[float, float]:
        """One step; returns the answers' loss and the other losses."""
        done = self.step / self.steps
        rng = random.Random(f"more-{self.seed}-{self.step}")
        tree = self.learner.packer.pack(self.learner.draw(rng, done))
        with torch.autocast("cpu", torch.bfloat16):
            logits, ahead, lost = self.learner.learn(tree, done)
        loss = torch.zeros(()) if logits is None else answer_loss(logits.float(), tree, self.learner.weights)
        if logits is not None:
            self._note_accuracy(logits, tree)
        if logits is not None and ahead is not None:
            lost = lost + AHEAD_WEIGHT * answer_loss(ahead.float(), tree)
            self.ahead += 0.05 * (acceptance(logits, ahead, tree)[0].mean().item() - self.ahead)
        torch.autograd.backward(loss + lost)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(self.step, self.steps, self.learner.warm_up)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item(), lost.item()

    def _note_accuracy(self, logits: Tensor, tree: Tree) -> None:
        """Follows, by task, the share of answers of which every token is right."""
        right = all_right(logits, tree)
        for task in set(tree.tasks.tolist()):
            self.accuracy[task] += 0.05 * (right[tree.tasks == task].mean() - self.accuracy[task])

    def state(self) -> dict[str, Any]:
        """Everything a later `restore` needs; batches depend on the seed and the step alone."""
        return {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.learner.modules().items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "accuracy": self.accuracy,
            "ahead": self.ahead,
        }

    def restore(self, path: Path) -> None:
        """Takes the state that `state` gave."""
        state = torch.load(path, weights_only=True)
        self.step, self.accuracy, self.ahead = state["step"], state["accuracy"], state["ahead"]
        for name, module in self.learner.modules().items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak


def make_optimizers(learner: Learner) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest; parameters of one learning rate make a group."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter, name, share in learner.rates():
        is_matrix = parameter.ndim == 2 and "embed" not in name and min(parameter.shape) > 8
        groups.setdefault((is_matrix, share), []).append(parameter)
    matrices, others = (
        [
            {"params": parameters, "peak": rate * share}
            for (is_matrix, share), parameters in groups.items()
            if is_matrix is wanted
        ]
        for wanted, rate in ((True, MATRIX_RATE), (False, OTHER_RATE))
    )
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def all_right(logits: Tensor, tree: Tree) -> Tensor:
    """1 for each question of which every token is the likeliest, as in an exact greedy answer; 0 for the others."""
    labelled = tree.labels != IGNORED
    right = (logits.argmax(-1) == tree.labels[labelled]).float()
    return torch.ones(len(tree.tasks)).scatter_reduce(0, tree.question[labelled], right, "amin")


def acceptance(logits: Tensor, ahead: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
    """For each guess of the MTP head, whether it is the decoder's token (1 or 0), and the task.

    The first token of an answer is left out: there the head is not asked.
    """
    question = tree.question[tree.labels != IGNORED]
    later = torch.cat([torch.tensor([False]), question[1:] == question[:-1]])
    return (logits.argmax(-1) == ahead.argmax(-1))[later].float(), tree.tasks[question[later]]


def check(learner: Learner, count: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """By task, the share of right answers to held-out questions and of accepted guesses of the MTP head."""
    rights: list[tuple[Tensor, Tensor]] = []
    guesses: list[tuple[Tensor, Tensor]] = []
    by_tasks = [learner.heldout(task, count, seed) for task in learner.packer.tasks]
    for start in range(0, count, CHECK_COUNT):
        examples = [example for group in by_tasks for example in group[start : start + CHECK_COUNT]]
        tree = learner.packer.pack(examples)
        with torch.no_grad():
            logits, ahead, _ = learner.learn(tree, 1.0)
        if logits is None:
            raise ValueError("a learner at the end of its training answers")
        rights.append((all_right(logits, tree), tree.tasks))
        guesses += [] if ahead is None else [acceptance(logits, ahead, tree)]
    return by_task(rights, learner.packer.tasks), by_task(guesses, learner.packer.tasks)


def by_task(parts: list[tuple[Tensor, Tensor]], names: tuple[str, ...]) -> dict[str, float]:
    """The mean by task of values and their tasks."""
    if not parts:
        return {}
    values, tasks = (torch.cat(column) for column in zip(*parts, strict=True))
    return {names[task]: values[tasks == task].mean().item() for task in sorted(set(tasks.tolist()))}


def run(trainer: Trainer) -> Iterator[None]:
    """Advances to the last step, printing a line every 20 steps; yields when the state is worth saving."""
    started = saved = time.monotonic()
    first, losses = trainer.step, [0.0, 0.0]
    while trainer.step < trainer.steps:
        losses = [0.9 * old + 0.1 * new for old, new in zip(losses, trainer.advance(), strict=True)]
        if trainer.step % 20 == 0:
            print(_progress(trainer, losses, (time.monotonic() - started) / (trainer.step - first)), flush=True)
        if trainer.step % CHECK_STEPS == 0:
            shares, accepted = check(trainer.learner, CHECK_COUNT, CHECK_SEED)
            print(f"held out {_percents(shares)} | ahead {_percents(accepted)}", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            yield
    yield


def _percents(shares: dict[str, float]) -> str:
    return " ".join(f"{task} {100 * share:.0f}" for task, share in shares.items())


def _progress(trainer: Trainer, losses: list[float], step_seconds: float) -> str:
    """Losses of answers and others, accuracy by task, the MTP head's acceptance, and the time left."""
    tasks = _percents(dict(zip(trainer.learner.packer.tasks, trainer.accuracy.tolist(), strict=True)))
    minutes = step_seconds * (trainer.steps - trainer.step) / 60
    return (
        f"step {trainer.step}/{trainer.steps} loss {losses[0]:.3f} others {losses[1]:.2f} | {tasks} | "
        f"ahead {100 * trainer.ahead:.0f} | {step_seconds:.2f} s a step, {minutes:.0f} min left"
    )


def main() -> None:
    """Trains, saving the state and the checkpoint folder every two minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=sorted(LEARNERS))
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint folder to write")
    parser.add_argument("--resume", action="store_true", help="go on from the state beside the folder")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    state = args.out.with_name(args.out.name + ".state.pt")
    learner: Learner = LEARNERS[args.architecture](args.seed)
    trainer = Trainer(learner, args.steps, args.seed)
    if args.resume:
        trainer.restore(state)
    for _ in run(trainer):
        torch.save(trainer.state(), state.with_suffix(".new"))
        state.with_suffix(".new").replace(state)
        learner.save(args.out)


if __name__ == "__main__":
    main()
