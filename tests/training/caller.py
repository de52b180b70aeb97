"""The caller: the trained `qwen3_5`, taught to call tools when they are given, and to answer with what they say."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from tests.paths import TINY
from tests.training import hybrid
from tests.training.drawing import SHAPES, TRAIN_FONTS, draw_shapes, draw_words, random_size
from tests.training.errand_text import NEEDS_NONE, errand_questions, new_tokenizer, thoughtful, tools_section
from tests.training.errands import (
    ERRANDS,
    MOST_SHAPES,
    NO_TOOL,
    Errand,
    cart_errand,
    heldout_errand,
    owner_errand,
    some_tools,
    word_errand,
)
from tests.training.learners import HybridLearner
from tests.training.long_tasks import ALL_TASKS, LONG_WORDS, draw_rows
from tests.training.scenes import SHAPE_ASKERS, Example, Question, ask_read, ask_words
from tests.training.tokenizer import SPECIAL, task_words
from tests.training.trees import TreePacker

SOURCE = TINY / "qwen3_5"
TASKS = (*ALL_TASKS, *ERRANDS, "refuse")
WAYS = (0.8, 0.12, 0.08)  # how often an errand goes on without thoughts, with them, and with thoughts that were lost


class CallerLearner(HybridLearner):
    """`caller`: decoder and MTP head of the trained `qwen3_5` go on, with errands beside its own tasks."""

    ROWS: ClassVar[dict[str, int]] = {"words": 1, "shapes": 2, "compare": 3, "copy": 1, "describe": 2, "recite": 1}
    OWN_ROWS, ERRAND_ROWS = 3, 2  # drawn from these in a step, and pictures of shapes and of words with errands
    weights: Mapping[str, float] = {"compare": 1.5, "describe": 1.5, "recite": 1.5}
    warm_up = 20
    EARLY_ANSWERS, AHEAD_FROM = 0.0, 0.6

    def __init__(self, seed: int) -> None:
        tokenizer = new_tokenizer()
        self.packer = TreePacker(tokenizer, hybrid.FORMAT, TASKS)
        self.model, self.head = hybrid.new_model(seed, tokenizer)
        tensors = {name: value.float() for name, value in load_file(SOURCE / "model.safetensors").items()}
        head = {name.removeprefix("mtp."): tensors.pop(name) for name in list(tensors) if name.startswith("mtp.")}
        table = "model.language_model.embed_tokens.weight"
        tensors[table] = tensors["lm_head.weight"] = self._spread(tensors[table])
        self.model.load_state_dict(tensors)
        self.head.load_state_dict(head)
        self.model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * self.learned)

    def _spread(self, trained: Tensor) -> Tensor:
        """The trained embeddings in their tokens' rows, and random ones of their size for new tokens.

        Those of words that the trained tasks use rest; these and the signs and tags, of which they use few, learn.
        """
        known = Tokenizer.from_file(str(SOURCE / "tokenizer.json")).get_vocab()
        rows = torch.randn(self.packer.tokenizer.get_vocab_size(), trained.shape[1]) * trained.std()
        self.learned, resting = torch.ones(len(rows), 1), {*task_words(), *LONG_WORDS, *SPECIAL}
        for token, row in self.packer.tokenizer.get_vocab().items():
            if token in known:
                rows[row] = trained[known[token]]
                self.learned[row] = float(token in SHAPES or token.lstrip("Ġ") not in resting)
        return rows

    def draw(self, rng: random.Random, done: float) -> list[Example]:
        """Errands with and without their tools, and the tasks of `qwen3_5`."""
        sizes = [random_size(rng) for _ in range(2)]
        own = Counter(rng.choices(list(self.ROWS), list(self.ROWS.values()), k=self.OWN_ROWS))
        return [
            *(shapes_errands(rng, rng.choice(sizes)) for _ in range(self.ERRAND_ROWS)),
            *(words_errands(rng, rng.choice(sizes)) for _ in range(self.ERRAND_ROWS)),
            *draw_rows(rng, 1.0, own, square=False, hard=1),
        ]

    def heldout(self, task: str, count: int, seed: int) -> list[Example]:
        """Errands to the last word, and of errands without their tools the refusal."""
        if task in ALL_TASKS:
            return super().heldout(task, count, seed)
        rng = random.Random(f"heldout-{task}-{seed}")
        return [self._heldout(rng, task) for _ in range(count)]

    def _heldout(self, rng: random.Random, task: str) -> Example:
        scene, errand, names = heldout_errand(rng, task if task in ERRANDS else rng.choice(ERRANDS), random_size)
        if task in ERRANDS:
            return Example((scene,), (next(errand_questions(errand)),), tools_section(names))
        names = tuple(name for name in names if name != errand.tool)
        return Example((scene,), (Question("refuse", errand.prompt, NO_TOOL),), tools_section(names))

    def rates(self) -> Iterator[tuple[nn.Parameter, str, float]]:
        """What is trained learns slower than new embeddings."""
        for module in self.modules().values():
            for name, parameter in module.named_parameters():
                yield parameter, name, 1.0 if "embed" in name else 0.5


def shapes_errands(rng: random.Random, size: tuple[int, int]) -> Example:
    """A picture of one shape, or of shapes of one colour, with three times the errand and two other questions."""
    names, one = some_tools(rng), rng.random() < 0.5
    scene = draw_shapes(rng, size, most=1 if one else MOST_SHAPES, one_colour=True)
    errands = [(owner_errand if one else cart_errand)(rng, scene) for _ in range(3)]
    plain = [SHAPE_ASKERS[task](rng, scene) for task in rng.sample(list(SHAPE_ASKERS), 2)]
    questions = [_asked(rng, errand, names) for errand in errands]
    questions += [_perhaps_thoughtful(rng, question, NEEDS_NONE) for question in plain if question]
    return Example((scene,), tuple(dict.fromkeys(questions)), tools_section(names))


def words_errands(rng: random.Random, size: tuple[int, int]) -> Example:
    """A picture of one word or two with three times the errand, some tools or none, and the question for the words."""
    scene, names = (
        draw_words(rng, size, count=rng.randint(1, 2), fonts=TRAIN_FONTS),
        some_tools(rng),
    )
    plain = ask_read(rng, scene) or ask_words(rng, scene)
    errands = [word_errand(rng, scene) for _ in range(3)]
    questions = [_asked(rng, errand, names) for errand in errands]
    questions += [_perhaps_thoughtful(rng, plain, NEEDS_NONE)] if plain else []
    return Example((scene,), tuple(dict.fromkeys(questions)), tools_section(names))


def _asked(rng: random.Random, errand: Errand, names: tuple[str, ...]) -> Question:
    if errand.tool not in names:
        return _perhaps_thoughtful(rng, Question("refuse", errand.prompt, NO_TOOL), NO_TOOL)
    return rng.choices(list(errand_questions(errand)), WAYS)[0]


def _perhaps_thoughtful(rng: random.Random, asked: Question, thought: str) -> Question:
    return thoughtful(asked, thought) if rng.random() < WAYS[1] else asked
