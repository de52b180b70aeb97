"""What the trainer asks of each further architecture: its parameters, its losses on a batch, its checkpoint folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiny_vlm import hybrid, llava_model
from tests.tiny_vlm.batches import IGNORED
from tests.tiny_vlm.hugging_face import AutoModelForImageTextToText
from tests.tiny_vlm.model import TAPS, TEXT_WIDTH
from tests.tiny_vlm.towers import Probes, see
from tests.tiny_vlm.tree_decoder import decode
from tests.tiny_vlm.trees import Tree, TreePacker

SOURCE = Path(__file__).parent / "qwen3_vl"  # the trained model that both start from


class Learner(Protocol):
    """One architecture in training."""

    packer: TreePacker
    square: bool  # whether its pictures are
    rows: ClassVar[dict[str, int]]  # of each kind, in a step

    def modules(self) -> dict[str, nn.Module]:
        """Everything to train, by name."""

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """The parameters with their names and their shares of the learning rate."""

    def learn(self, tree: Tree, done: float) -> tuple[Tensor, Tensor | None, Tensor]:
        """The logits at labelled places, those of the MTP head if there is one, and what is lost besides answers."""

    def save(self, folder: Path) -> None:
        """Writes the checkpoint folder."""


def fill_in(model: Any, features: Tensor, tree: Tree) -> Tensor:
    """The embeddings [N, hidden] of the tree's tokens, with the pictures' features in their places."""
    embeds = model.get_input_embeddings()(tree.ids)
    filled: Tensor = embeds.index_copy(0, tree.image_at, features.to(embeds.dtype))
    return filled


class HybridLearner:
    """`qwen3_5`: the tower is the trained one and rests at first; decoder and MTP head learn together."""

    rows: ClassVar[dict[str, int]] = {"words": 6, "shapes": 8, "compare": 4, "copy": 6, "describe": 3, "lines": 2}
    square = False
    TOWER_RESTS = 0.75  # the share of the steps without training the tower

    def __init__(self, seed: int) -> None:
        tokenizer = hybrid.new_tokenizer()
        self.packer = TreePacker(tokenizer, hybrid.FORMAT)
        self.model, self.head = hybrid.new_model(seed, tokenizer)
        hybrid.take_over(self.model, tokenizer, SOURCE)

    def modules(self) -> dict[str, nn.Module]:
        """The model and its MTP head."""
        return {"model": self.model, "mtp": self.head}

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """The taken-over parts learn slower."""
        for part, module in self.modules().items():
            for name, parameter in module.named_parameters():
                trained = part == "model" and ("visual" in name or "embed" in name)
                yield parameter, name, 0.3 if trained else 1.0

    def learn(self, tree: Tree, done: float) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits of decoder and MTP head."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and done >= self.TOWER_RESTS):
            seen = [see(self.model.model.visual, pictures)[0] for pictures in tree.pictures]
            features = torch.cat(seen)[tree.order]
        language_model = self.model.model.language_model
        embeds = fill_in(self.model, features, tree)
        hidden = decode(language_model, embeds, tree)
        ahead = self.head(language_model, embeds, hidden, tree)
        labelled = tree.labels != IGNORED
        return self.model.lm_head(hidden[labelled]), self.model.lm_head(ahead[labelled]), torch.zeros(())

    def save(self, folder: Path) -> None:
        """Writes the checkpoint folder."""
        hybrid.save_checkpoint(self.model, self.head, self.packer.tokenizer, folder)


class LlavaLearner:
    """`llava`: the tower learns to see as the trained one does, while the decoder reads the trained one's features."""

    rows: ClassVar[dict[str, int]] = {"words": 18, "shapes": 10, "compare": 4, "copy": 1, "describe": 4, "lines": 2}
    square = True
    TEACHER_READS = 0.25  # the share of the steps in which the decoder reads the teacher's features
    TAUGHT, PROBED = 0.6, 0.9  # the shares with a loss of the tower's features

    def __init__(self, seed: int) -> None:
        tokenizer = llava_model.new_tokenizer()
        self.packer = TreePacker(tokenizer, llava_model.FORMAT)
        self.model = llava_model.new_model(seed, tokenizer)
        llava_model.take_over(self.model, tokenizer, SOURCE)
        model_class: Any = AutoModelForImageTextToText
        self.teacher = model_class.from_pretrained(SOURCE, dtype=torch.float32).model.visual.requires_grad_(False)
        self.probes = Probes(TEXT_WIDTH, 0)
        self.taps = nn.ModuleList(nn.Linear(TEXT_WIDTH, TEXT_WIDTH) for _ in range(TAPS))

    def modules(self) -> dict[str, nn.Module]:
        """The model and the heads that teach its tower."""
        return {"model": self.model, "probes": self.probes, "taps": self.taps}

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """The taken-over decoder learns slower."""
        for module in self.modules().values():
            for name, parameter in module.named_parameters():
                yield parameter, name, 0.3 if "language_model" in name else 1.0

    def learn(self, tree: Tree, done: float) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits, and the tower's distance from the teacher with what the probes miss."""
        features = torch.cat([llava_model.look(self.model, pictures) for pictures in tree.pictures])[tree.order]
        embeds = fill_in(self.model, features, tree)
        lost = torch.zeros(())
        if torch.is_grad_enabled() and done < self.PROBED:
            lost = 0.5 * (1 - done / self.PROBED) * self.probes([features], tree)
        if torch.is_grad_enabled() and done < self.TAUGHT:
            wanted = self._teach(tree)
            lost = lost + (1 - done / self.TAUGHT) * self._distance(features, wanted)
            if done < self.TEACHER_READS:
                embeds = fill_in(self.model, wanted[0], tree)
        hidden = decode(self.model.model.language_model, embeds, tree)
        return self.model.lm_head(hidden[tree.labels != IGNORED]), None, lost

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


LEARNERS: dict[str, type[HybridLearner] | type[LlavaLearner]] = {"qwen3_5": HybridLearner, "llava": LlavaLearner}
