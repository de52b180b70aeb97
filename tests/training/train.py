"""Trains the tiny model: `python tests/training/train.py --out FOLDER [--resume]`.

The committed checkpoint: 3,300 steps in 87 minutes on two CPU cores shared with other work (0.9 to 1.1 s a step when
they were free); README.md has the held-out accuracies, 99 % on average. It is one model, stopped and resumed six times
while the recipe took its final form, which is the one below. Before:

- to step 540: one process of two threads (float32 to step 330), rows 16 words, 12 shapes, 5 compare, 3 copy;
- to step 1040: two workers, rows 12, 8, 3, 1 each; no probes yet for places and counts, and `where` still at
  chance;
- to step 1775: rows 12, 8, 3, 1, from step 1210 on 9, 9, 5, 1; the level learning rate of a longer schedule.

The whole recipe from step 0 in one go has not been run. `OMP_WAIT_POLICY=passive` in the environment helps where other
programs use the cores, too.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.paths import TINY
from tests.training.batches import IGNORED, ROWS, Batch, Packer, draw_examples
from tests.training.model import TAPS, TEXT_WIDTH, new_model, save_checkpoint
from tests.training.scenes import TASKS
from tests.training.towers import Probes, predict

SAVE_SECONDS = 120
EASY = 0.27  # the part of the steps in which pictures grow from small and plain to all sizes, fonts and colours
MATRIX_RATE, OTHER_RATE = 5e-3, 3e-3  # the peak learning rates of Muon and AdamW


class Trainer:
    """One worker's model, probes and optimizers, equal in all workers, and the step they have reached."""

    def __init__(self, steps: int, seed: int, worker: int) -> None:
        self.model, self.tokenizer = new_model(seed)
        self.probes = Probes(TEXT_WIDTH, TAPS)
        self.packer = Packer(self.tokenizer)
        self.steps, self.seed, self.worker, self.step = steps, seed, worker, 0
        matrices, others = split_parameters(self.model)
        others += list(self.probes.parameters())
        self.parameters = matrices + others
        self.optimizers = [
            torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.accuracy = torch.zeros(len(TASKS))

    def advance(self) -> tuple[float, float]:
        """One step; returns the answers' loss and the probes' loss."""
        done = self.step / self.steps
        rng = random.Random(f"train-{self.seed}-{self.worker}-{self.step}")
        batch = self.packer.pack(draw_examples(rng, min(1.0, done / EASY), ROWS))
        probe_weight = 0.5 * min(1.0, max(0.0, (0.9 - done) / 0.4))
        with torch.autocast("cpu", torch.bfloat16):
            logits, features = predict(self.model, batch)
            probe_loss = self.probes(features, batch) if probe_weight else torch.zeros(())
        loss = self._answer_loss(logits.float(), batch)
        torch.autograd.backward(loss + probe_weight * probe_loss)
        average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, rate in zip(self.optimizers, (MATRIX_RATE, OTHER_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule(self.step, self.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item(), probe_loss.item()

    def _answer_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of the answers; a question of n tokens weighs as the square root of n."""
        labelled = batch.labels != IGNORED
        labels, question = batch.labels[labelled], batch.question[labelled]
        lengths = torch.bincount(question, minlength=len(batch.tasks))
        weights = lengths[question] ** -0.5
        self._note_accuracy(logits.argmax(-1) == labels, question, batch.tasks)
        return (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()

    def _note_accuracy(self, right: Tensor, question: Tensor, tasks: Tensor) -> None:
        """Follows, by task, the share of answers of which every token is right."""
        whole = torch.ones(len(tasks)).scatter_reduce(0, question, right.float(), "amin")
        for task in set(tasks.tolist()):
            self.accuracy[task] += 0.05 * (whole[tasks == task].mean() - self.accuracy[task])

    def state(self) -> dict[str, object]:
        """Everything a later `restore` needs; batches depend on the seed and the step alone."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "probes": self.probes.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "accuracy": self.accuracy,
        }

    def restore(self, path: Path) -> None:
        """Takes the state that `state` gave."""
        state = torch.load(path, weights_only=True)
        self.step, self.accuracy = state["step"], state["accuracy"]
        self.model.load_state_dict(state["model"])
        self.probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Averages the gradients of all workers, as one flat tensor."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """The share of the peak learning rate: a warm-up, level, then down to zero over the last 40 %."""
    return min(1.0, (step + 1) / warm_up, (steps - step) / (0.4 * steps))


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the layers, for Muon; and embeddings, patches, norms and biases, for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return matrices, others


def run(trainer: Trainer) -> Iterator[None]:
    """Advances to the last step, printing a line every 20 steps; yields when the state is worth saving."""
    started = saved = time.monotonic()
    first, losses = trainer.step, [0.0, 0.0]
    while trainer.step < trainer.steps:
        losses = [0.9 * old + 0.1 * new for old, new in zip(losses, trainer.advance(), strict=True)]
        if trainer.step % 20 == 0 and trainer.worker == 0:
            print(_progress(trainer, losses, (time.monotonic() - started) / (trainer.step - first)), flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            yield
    yield


def _progress(trainer: Trainer, losses: list[float], step_seconds: float) -> str:
    """Losses of answers and probes, what the probes find, accuracy by task, and the time left."""
    found = " ".join(f"{100 * share:.0f}" for share in trainer.probes.found)
    tasks = " ".join(f"{task} {100 * share:.0f}" for task, share in zip(TASKS, trainer.accuracy, strict=True))
    minutes = step_seconds * (trainer.steps - trainer.step) / 60
    return (
        f"step {trainer.step}/{trainer.steps} loss {losses[0]:.3f} probes {losses[1]:.2f} ({found}) | {tasks} | "
        f"{step_seconds:.2f} s a step, {minutes:.0f} min left"
    )


def work(worker: int, args: argparse.Namespace) -> None:
    """One worker's whole training, on one thread; the first one prints and saves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=args.meeting, rank=worker, world_size=args.workers)
    template = (TINY / "qwen3_vl" / "chat_template.jinja").read_text(encoding="utf-8")
    state = args.out.with_name(args.out.name + ".state.pt")
    trainer = Trainer(args.steps, args.seed, worker)
    if args.resume:
        trainer.restore(state)
    for _ in run(trainer):
        if worker == 0:
            torch.save(trainer.state(), state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            save_checkpoint(trainer.model, trainer.tokenizer, template, args.out)


def main() -> None:
    """Starts the workers, each with its own examples; together they saw twice the rows of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint folder to write")
    parser.add_argument("--resume", action="store_true", help="go on from the state beside the folder")
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.meeting = f"file://{folder}/workers"
        multiprocessing: Any = torch.multiprocessing
        multiprocessing.spawn(work, args=(args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
