"""Packs examples into trees: a picture's tokens once (the trunk), and from its end one branch for each question.

All tokens of a batch lie in one flat list without padding, where norms, projections and MLPs work. Attention and the
delta rule gather them into padded rows: trunks padded on the left, so that states end at the last token, branches on
the right. So a question is trained as if it were alone, also in layers with a recurrent state, which no mask divides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.training.batches import CELL, IGNORED, MARKS, count_before, group_pictures, join, truth
from tests.training.long_tasks import ALL_TASKS
from tests.training.scenes import Example, Question

LENGTHS = (24, 40, 72, 128, 256, 512)  # branches up to the same one of these are padded together


@dataclass(frozen=True)
class PromptFormat:
    """The chat template's text around pictures and prompt; `grid` gives image tokens positions by row and column."""

    before_picture: str
    picture: str
    after_picture: str
    turn: str
    grid: bool
    start: str = "<|im_start|>user\n"
    end: str = "<|im_end|>"
    thinking_turn: str = ""


@dataclass(frozen=True)
class Branches:
    """Questions of about one length: the row of each one's trunk [Q], and their tokens [Q, S]."""

    trunks: Tensor
    index: Tensor


@dataclass(frozen=True)
class Trunks:
    """The shared beginnings [B, P] of examples of about one length, and the questions that go on from them."""

    index: Tensor
    branches: list[Branches]


@dataclass(frozen=True)
class Tree:
    """Tensors of one step: N tokens, I image tokens, Q questions; in an index the number N stands for no token."""

    ids: Tensor  # [N]
    image_at: Tensor  # [I], the image tokens among the N
    positions: Tensor  # [3, N]
    labels: Tensor  # [N], the next token or IGNORED
    question: Tensor  # [N], the number of the question in the batch; 0 in trunks
    tasks: Tensor  # [Q], index into `task_names`
    task_names: tuple[str, ...]
    before: Tensor  # [3, N], the tokens one, two and three places before
    groups: list[Trunks]
    where: Tensor  # [N], the place of each token in the concatenation of all padded rows
    pictures: list[Tensor]  # this and what follows as in `Batch`
    order: Tensor
    classes: Tensor
    marks: Tensor
    places: Tensor
    orders: Tensor


class _Stretch:
    """Tokens that follow each other, with their positions; the next one gets `position`."""

    def __init__(self, position: int = 0) -> None:
        self.ids: list[int] = []
        self.positions: list[tuple[int, int, int]] = []
        self.position = position

    def text(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.positions += [(self.position + i,) * 3 for i in range(len(ids))]
        self.position += len(ids)

    def grid(self, token: int, rows: int, cols: int) -> None:
        self.ids += [token] * (rows * cols)
        here = self.position
        self.positions += [(here, here + row, here + col) for row in range(rows) for col in range(cols)]
        self.position += max(rows, cols)


@dataclass
class _Growing:
    """The lists behind a tree, while examples are added."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    question: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    trunks: dict[bool, list[list[int]]] = field(
        default_factory=dict
    )  # by whether there is a system's turn, which is long
    branches: dict[bool, list[tuple[int, list[int]]]] = field(default_factory=dict)
    questions: int = 0

    def add(self, stretch: _Stretch, labels: Sequence[int], last: int = -1) -> list[int]:
        """Appends a stretch that follows the token `last`; returns its tokens' numbers."""
        numbers = list(range(len(self.ids), len(self.ids) + len(stretch.ids)))
        self.ids += stretch.ids
        self.labels += labels
        self.positions += stretch.positions
        self.question += [self.questions] * len(numbers)
        self.before += [last, *numbers[:-1]]
        return numbers


class TreePacker:
    """Turns examples into a `Tree` with one tokenizer and chat format."""

    def __init__(self, tokenizer: Tokenizer, prompt_format: PromptFormat, tasks: tuple[str, ...] = ALL_TASKS) -> None:
        self.tokenizer, self.format, self.tasks = tokenizer, prompt_format, tasks
        self.picture = self._ids(prompt_format.picture)[0]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def pack(self, examples: Sequence[Example]) -> Tree:
        """One tree of all the examples' pictures and questions."""
        lists = _Growing()
        for example in examples:
            self._add_example(lists, example)
        count = len(lists.ids)
        groups = _pad_groups(lists, count)
        ids = torch.tensor(lists.ids)
        scenes = [scene for example in examples for scene in example.scenes]
        pictures, order = group_pictures(scenes)
        classes, marks = zip(*(truth(scene) for scene in scenes), strict=True)
        places, orders = zip(*(count_before(scene) for scene in scenes), strict=True)
        return Tree(
            ids=ids,
            image_at=(ids == self.picture).nonzero()[:, 0],
            positions=torch.tensor(lists.positions).T.contiguous(),
            labels=torch.tensor(lists.labels),
            question=torch.tensor(lists.question),
            tasks=torch.tensor([self.tasks.index(asked.task) for example in examples for asked in example.questions]),
            task_names=self.tasks,
            before=_before(torch.tensor(lists.before)),
            groups=groups,
            where=_where(groups, count),
            pictures=pictures,
            order=order,
            classes=join(classes),
            marks=join(marks).view(-1, MARKS),
            places=join(places),
            orders=join(orders).view(-1, 3),
        )

    def _add_example(self, lists: _Growing, example: Example) -> None:
        stretch = self._trunk(example)
        trunk = lists.add(stretch, [IGNORED] * len(stretch.ids))
        kind = bool(example.system)
        trunks, branches = lists.trunks.setdefault(kind, []), lists.branches.setdefault(kind, [])
        trunks.append(trunk)
        for asked in example.questions:
            ids, is_answer = self._branch(asked)
            branch = _Stretch(stretch.position)
            branch.text(ids[:-1])
            labels = [token if wanted else IGNORED for token, wanted in zip(ids, is_answer, strict=True)]
            branches.append((len(trunks) - 1, lists.add(branch, labels[1:], trunk[-1])))
            lists.questions += 1

    def _branch(self, asked: Question) -> tuple[list[int], list[bool]]:
        """A question's tokens from the prompt to the end of the last answer, and which of them are answers."""
        turn = self.format.thinking_turn if asked.thinks else self.format.turn
        ids: list[int] = []
        is_answer: list[bool] = []
        for given, answer in ((asked.prompt + self.format.end + turn, asked.answer), *asked.later):
            for text, wanted in ((given, False), (answer + self.format.end, True)):
                part = self._ids(text)
                ids += part
                is_answer += [wanted] * len(part)
        return ids, is_answer

    def _trunk(self, example: Example) -> _Stretch:
        stretch = _Stretch()
        stretch.text(self._ids(example.system + self.format.start))
        for scene in example.scenes:
            rows, cols = scene.image.height // CELL, scene.image.width // CELL
            stretch.text(self._ids(self.format.before_picture))
            if self.format.grid:
                stretch.grid(self.picture, rows, cols)
            else:
                stretch.text([self.picture] * (rows * cols))
            stretch.text(self._ids(self.format.after_picture))
        return stretch


def _before(previous: Tensor) -> Tensor:
    """The tokens one, two and three places before each, [3, N], from the one before (-1 for none)."""
    count = len(previous)
    one = torch.cat([previous.where(previous >= 0, count), torch.tensor([count])])
    two = one[one]
    return torch.stack([one, two, one[two]])[:, :count]


def _pad_groups(lists: _Growing, filler: int) -> list[Trunks]:
    groups = []
    for kind, trunks in lists.trunks.items():
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for branch in lists.branches[kind]:
            by_length.setdefault(next(length for length in LENGTHS if len(branch[1]) <= length), []).append(branch)
        branches = [
            Branches(torch.tensor([trunk for trunk, _ in group]), _pad([tokens for _, tokens in group], filler))
            for group in by_length.values()
        ]
        padded_left = _pad([trunk[::-1] for trunk in trunks], filler).flip(1)
        groups.append(Trunks(padded_left, branches))
    return groups


def _pad(rows: list[list[int]], filler: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), filler)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return padded


def _where(groups: list[Trunks], count: int) -> Tensor:
    """The place of each token in the concatenation of `padded_rows`."""
    flat = torch.cat([rows.flatten() for rows in padded_rows(groups)])
    where = torch.empty(count + 1, dtype=torch.long)
    where[flat] = torch.arange(len(flat))
    return where[:count]


def padded_rows(groups: list[Trunks]) -> list[Tensor]:
    """All padded index tensors, in the order in which layers work on them: trunks, then their branches."""
    return [rows for group in groups for rows in (group.index, *(branch.index for branch in group.branches))]


def without_first(groups: list[Trunks], before: Tensor) -> list[Trunks]:
    """The same groups without the first token of each trunk, which has none before it."""
    first = torch.cat([before[0] == before.shape[1], torch.tensor([False])])
    return [Trunks(group.index.masked_fill(first[group.index], before.shape[1]), group.branches) for group in groups]
