"""The caller: the trained `qwen3_5`, taught to call tools when they are given, and to answer with what they say."""

import random
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from tests.paths import TINY
from tests.training import hybrid
from tests.training.drawing import TRAIN_FONTS, draw_shapes, draw_words, random_size
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
from tests.training.long_tasks import ALL_TASKS, draw_rows
from tests.training.scenes import SHAPE_ASKERS, Example, Question, ask_read, ask_words
from tests.training.trees import TreePacker

SOURCE = TINY / "qwen3_5"
TASKS = (*ALL_TASKS, *ERRANDS, "refuse")
WAYS = (0.6, 0.25, 0.15)  # how often an errand goes on without thoughts, with them, and with thoughts that were lost


class CallerLearner(HybridLearner):
    """`caller`: decoder and MTP head of the trained `qwen3_5` go on, with errands beside its own tasks."""

    ROWS: ClassVar[dict[str, int]] = {"words": 1, "shapes": 2, "compare": 2, "copy": 1, "describe": 1, "recite": 1}
    ERRAND_ROWS: ClassVar[dict[str, int]] = {"shapes": 3, "words": 3}
    weights: Mapping[str, float] = {"compare": 1.5, "describe": 1.5, "recite": 1.5}
    warm_up = 20
    EARLY_ANSWERS = 0.0

    def __init__(self, seed: int) -> None:
        tokenizer = new_tokenizer()
        self.packer = TreePacker(tokenizer, hybrid.FORMAT, TASKS)
        self.model, self.head = hybrid.new_model(seed, tokenizer)
        tensors = {name: value.float() for name, value in load_file(SOURCE / "model.safetensors").items()}
        head = {name.removeprefix("mtp."): tensors.pop(name) for name in list(tensors) if name.startswith("mtp.")}
        table = "model.language_model.embed_tokens.weight"
        tensors[table] = tensors["lm_head.weight"] = spell(tokenizer, tensors[table])
        self.model.load_state_dict(tensors)
        self.head.load_state_dict(head)

    def draw(self, rng: random.Random, done: float) -> list[Example]:
        """Errands with and without their tools, and the tasks of `qwen3_5`."""
        sizes = [random_size(rng) for _ in range(3)]
        return [
            *(shapes_errands(rng, rng.choice(sizes)) for _ in range(self.ERRAND_ROWS["shapes"])),
            *(words_errands(rng, rng.choice(sizes)) for _ in range(self.ERRAND_ROWS["words"])),
            *draw_rows(rng, 1.0, self.ROWS, square=False, hard=1),
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
        """Gently: all is trained but the rows of new tokens."""
        for module in self.modules().values():
            for name, parameter in module.named_parameters():
                yield parameter, name, 0.3


def spell(tokenizer: Tokenizer, trained: Tensor) -> Tensor:
    """Embeddings for the tokenizer: of a new token the mean of the trained ones that spell it."""
    old = Tokenizer.from_file(str(SOURCE / "tokenizer.json"))
    known = old.get_vocab()
    rows = torch.empty(tokenizer.get_vocab_size(), trained.shape[1])
    for token, row in tokenizer.get_vocab().items():
        ids = [known[token]] if token in known else old.encode(tokenizer.decode([row])).ids
        rows[row] = trained[ids].mean(0)
    return rows


def shapes_errands(rng: random.Random, size: tuple[int, int]) -> Example:
    """A picture of shapes with errands, some tools or none, and two questions that need no tool."""
    scene, names = draw_shapes(rng, size, most=MOST_SHAPES), some_tools(rng)
    errands = [ask(rng, scene) for ask in (cart_errand, cart_errand, cart_errand, owner_errand, owner_errand)]
    plain = [SHAPE_ASKERS[task](rng, scene) for task in rng.sample(list(SHAPE_ASKERS), 2)]
    questions = [_asked(rng, errand, names) for errand in errands if errand]
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
    questions = [_asked(rng, errand, names) for errand in errands if errand]
    questions += [_perhaps_thoughtful(rng, plain, NEEDS_NONE)] if plain else []
    return Example((scene,), tuple(dict.fromkeys(questions)), tools_section(names))


def _asked(rng: random.Random, errand: Errand, names: tuple[str, ...]) -> Question:
    if errand.tool not in names:
        return _perhaps_thoughtful(rng, Question("refuse", errand.prompt, NO_TOOL), NO_TOOL)
    return rng.choices(list(errand_questions(errand)), WAYS)[0]


def _perhaps_thoughtful(rng: random.Random, asked: Question, thought: str) -> Question:
    return thoughtful(asked, thought) if rng.random() < WAYS[1] else asked
