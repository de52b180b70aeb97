"""What the trainer asks of each further architecture: its parameters, its losses on a batch, its checkpoint folder."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.paths import TINY
from tests.training import hybrid, llava_model
from tests.training.batches import IGNORED
from tests.training.hugging_face import AutoModelForImageTextToText
from tests.training.long_tasks import draw_rows, scale_example, square_examples
from tests.training.model import TAPS, TEXT_WIDTH
from tests.training.mtp import FULL_ATTENTION
from tests.training.scenes import Example
from tests.training.towers import Probes, see
from tests.training.tree_decoder import decode
from tests.training.trees import Tree, TreePacker

SOURCE = TINY / "qwen3_vl"  # the trained model that both start from
NO_WEIGHTS: Mapping[str, float] = {}


class Learner(Protocol):
    """One architecture in training."""

    packer: TreePacker
    weights: Mapping[str, float]  # of the questions of some tasks; 1 of the others
    warm_up: int  # steps until the learning rate is at its peak

    def draw(self, rng: random.Random, done: float) -> list[Example]:
        """The examples of one step."""

    def heldout(self, task: str, count: int, seed: int) -> list[Example]:
        """Examples of a task that no step draws, each with one question."""

    def modules(self) -> dict[str, nn.Module]:
        """Everything to train, by name."""

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """The parameters with their names and their shares of the learning rate."""

    def learn(self, tree: Tree, done: float) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The logits at labelled places, those of the MTP head, if there are any, and what is lost besides answers."""

    def save(self, folder: Path) -> None:
        """Writes the checkpoint folder."""


def fill_in(model: Any, features: Tensor, tree: Tree) -> Tensor:
    """The embeddings [N, hidden] of the tree's tokens, with the pictures' features in their places."""
    embeds = model.get_input_embeddings()(tree.ids)
    filled: Tensor = embeds.index_copy(0, tree.image_at, features.to(embeds.dtype))
    return filled


def answer_loss(logits: Tensor, tree: Tree, by_task: Mapping[str, float] = NO_WEIGHTS) -> Tensor:
    """Cross entropy of the answers; a question of n tokens weighs as the square root of n, times the task's weight."""
    labelled = tree.labels != IGNORED
    question = tree.question[labelled]
    weights = torch.bincount(question, minlength=len(tree.tasks))[question] ** -0.5
    weights = weights * torch.tensor([by_task.get(task, 1.0) for task in tree.task_names])[tree.tasks[question]]
    return (F.cross_entropy(logits, tree.labels[labelled], reduction="none") * weights).sum() / weights.sum()


class HybridLearner:
    """`qwen3_5`: the tower is the trained one and rests; decoder and MTP head learn together."""

    ROWS: ClassVar[dict[str, int]] = {"words": 3, "shapes": 5, "compare": 7, "copy": 1, "describe": 2, "recite": 1}
    weights: Mapping[str, float] = {"compare": 3.0, "describe": 1.5, "recite": 1.5}
    warm_up = 100
    EARLY_ANSWERS = 0.9  # the share of the steps in which the first full attention has to answer, too
    AHEAD_FROM = 0.0  # the share behind which the MTP head learns

    def __init__(self, seed: int) -> None:
        tokenizer = hybrid.new_tokenizer()
        self.packer = TreePacker(tokenizer, hybrid.FORMAT)
        self.model, self.head = hybrid.new_model(seed, tokenizer)
        hybrid.take_over(self.model, tokenizer, SOURCE)

    def draw(self, rng: random.Random, done: float) -> list[Example]:
        """All levels soon: the tower sees already; with further questions of the kinds that are learned last."""
        return draw_rows(rng, min(1.0, 0.3 + done / 0.15), self.ROWS, square=False, hard=3)

    def heldout(self, task: str, count: int, seed: int) -> list[Example]:
        """Square pictures, scaled as the processor would."""
        return [scale_example(example) for example in square_examples(task, count, seed)]

    def modules(self) -> dict[str, nn.Module]:
        """The model and its MTP head."""
        return {"model": self.model, "mtp": self.head}

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """The taken-over parts learn slower."""
        for part, module in self.modules().items():
            for name, parameter in module.named_parameters():
                trained = part == "model" and ("visual" in name or "embed" in name)
                yield parameter, name, 0.3 if trained else 1.0

    def learn(self, tree: Tree, done: float) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Logits of decoder and MTP head, and what the decoder's first half answers wrongly."""
        with torch.no_grad():
            seen = [see(self.model.model.visual, pictures)[0] for pictures in tree.pictures]
            features = torch.cat(seen)[tree.order]
        language_model = self.model.model.language_model
        embeds = fill_in(self.model, features, tree)
        states = decode(language_model, embeds, tree)
        hidden = language_model.norm(states[-1])
        labelled = tree.labels != IGNORED
        ahead = None
        if done >= self.AHEAD_FROM:
            ahead = self.model.lm_head(self.head(language_model, embeds, hidden, tree)[labelled])
        lost = torch.zeros(())
        if torch.is_grad_enabled():
            lost = 0.3 * self._picture_loss(states[FULL_ATTENTION - 1], tree)
        if torch.is_grad_enabled() and done < self.EARLY_ANSWERS:
            early = language_model.norm(states[FULL_ATTENTION][labelled])
            lost = lost + 0.3 * answer_loss(self.model.lm_head(early).float(), tree, self.weights)
        return self.model.lm_head(hidden[labelled]), ahead, lost

    def _picture_loss(self, states: Tensor, tree: Tree) -> Tensor:
        """Whether image tokens know in front of the first full attention which picture of two they belong to.

        One direction of the state shall say it. Attention cannot tell two pictures apart without, and the recurrent
        layers do not find this out from the answers alone.
        """
        ids = torch.tensor(self.packer.tokenizer.encode("<|im_start|><|vision_start|>").ids)
        turns, starts = tree.ids == ids[:, None]  # [2, N]
        begun = starts.cumsum(0)
        begun_before_the_turn = (begun * turns).cummax(0).values
        second = (begun - begun_before_the_turn)[tree.image_at] > 1
        seen = F.rms_norm(states[tree.image_at].float(), states.shape[-1:])
        direction = torch.tensor([1.0, -1.0]).repeat(states.shape[-1] // 2) * states.shape[-1] ** -0.5
        return F.binary_cross_entropy_with_logits(seen @ direction, second.float())

    def save(self, folder: Path) -> None:
        """Writes the checkpoint folder."""
        hybrid.save_checkpoint(self.model, self.head, self.packer.tokenizer, folder)


class LlavaLearner:
    """`llava`: the tower learns to see as the trained one does, while the decoder reads the trained one's features.

    Then the tower learns alone, mostly to read, from plain pictures on, and at last both together.
    """

    ROWS: ClassVar[dict[str, int]] = {"words": 26, "shapes": 8, "compare": 3, "copy": 1, "describe": 6, "recite": 3}
    TOWER_ROWS: ClassVar[dict[str, int]] = {"words": 30, "shapes": 6, "describe": 4}
    weights: Mapping[str, float] = {"describe": 4.0, "recite": 4.0}
    warm_up = 100
    APART, ALONE = 0.2, 0.65  # the shares of the steps at which the first and the second part end
    TAUGHT, PROBED = 0.75, 0.95  # those without a loss of the tower's distance, and of the probes

    def __init__(self, seed: int) -> None:
        tokenizer = llava_model.new_tokenizer()
        self.packer = TreePacker(tokenizer, llava_model.FORMAT)
        self.model = llava_model.new_model(seed, tokenizer)
        llava_model.take_over(self.model, tokenizer, SOURCE)
        model_class: Any = AutoModelForImageTextToText
        self.teacher = model_class.from_pretrained(SOURCE, dtype=torch.float32).model.visual.requires_grad_(False)
        self.probes = Probes(TEXT_WIDTH, 0)
        self.taps = nn.ModuleList(nn.Linear(TEXT_WIDTH, TEXT_WIDTH) for _ in range(TAPS))

    def draw(self, rng: random.Random, done: float) -> list[Example]:
        """Levels begin anew when the tower learns alone."""
        level, rows = 1.0, self.ROWS
        if done < self.APART:
            level = min(1.0, 0.3 + done / 0.15)
        elif done < self.ALONE:
            level, rows = min(1.0, (done - self.APART) / 0.4), self.TOWER_ROWS
        return draw_rows(rng, level, rows, square=True)

    def heldout(self, task: str, count: int, seed: int) -> list[Example]:
        """Square pictures, scaled as the processor would."""
        return [scale_example(example) for example in square_examples(task, count, seed)]

    def modules(self) -> dict[str, nn.Module]:
        """The model and the heads that teach its tower."""
        return {"model": self.model, "probes": self.probes, "taps": self.taps}

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """The taken-over decoder learns slower."""
        for module in self.modules().values():
            for name, parameter in module.named_parameters():
                yield parameter, name, 0.6 if "language_model" in name else 1.0

    def learn(self, tree: Tree, done: float) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Logits, and the tower's distance from the teacher with what the probes miss."""
        features = torch.cat([llava_model.look(self.model, pictures) for pictures in tree.pictures])[tree.order]
        embeds = fill_in(self.model, features, tree)
        lost = torch.zeros(())
        if torch.is_grad_enabled() and done < self.PROBED:
            lost = 0.5 * (1 - done / self.PROBED) * self.probes([features], tree)
        if torch.is_grad_enabled() and done < self.TAUGHT:
            wanted = self._teach(tree)
            lost = lost + (1 - done / self.TAUGHT) * self._distance(features, wanted)
            if done < self.APART:
                embeds = fill_in(self.model, wanted[0], tree)
            elif done < self.ALONE:
                return None, None, lost
        language_model = self.model.model.language_model
        hidden = decode(language_model, embeds, tree)[-1][tree.labels != IGNORED]
        return self.model.lm_head(language_model.norm(hidden)), None, lost

    def _teach(self, tree: Tree) -> list[Tensor]:
        with torch.no_grad():
            seen = [see(self.teacher, pictures) for pictures in tree.pictures]
            return [torch.cat(parts)[tree.order].float() for parts in zip(*seen, strict=True)]

    def _distance(self, features: Tensor, wanted: list[Tensor]) -> Tensor:
        """The share of the teacher's variance that the features, or a linear view of them, do not explain."""
        views = [features, *(tap(features) for tap in self.taps)]
        shares = [F.mse_loss(view.float(), aim) / aim.var() for view, aim in zip(views, wanted, strict=True)]
        return 2 * shares[0] + torch.stack(shares[1:]).sum()

    def save(self, folder: Path) -> None:
        """Writes the checkpoint folder."""
        llava_model.save_checkpoint(self.model, self.packer.tokenizer, folder)
