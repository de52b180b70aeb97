"""The built-in samples: pictures drawn by code, questions about them, and text, of all kinds in turn, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

from ....exporters.comparing.cases import Case
from .pictures import PICTURES
from .questions import (
    ALONE,
    ANY,
    BEGINNINGS,
    CALLS,
    OF_PAIRS,
    OF_PICTURES,
    filled,
    tools_of,
)

HELD_BACK = 5  # every fifth kind is judged alone: what calibration makes of kinds that it never saw
EACH = 2  # questions about a picture: it is encoded once, and what stands in front of a question computed once


@dataclass(frozen=True)
class Ways:
    """What the chat template of a model allows."""

    tools: bool = True
    free: bool = True  # a user's message that the model itself goes on with
    pictures: bool = True  # whether the model takes images


class BuiltinSamples:
    """Draws samples; pictures go to a folder."""

    def __init__(self, folder: Path, seed: int, ways: Ways) -> None:
        self.folder, self.seed, self.ways = folder, seed, ways
        self.turns = {name: count() for name in (*PICTURES, *ALONE, "pairs", "tools", "free text", "any")}

    @property
    def held_back(self) -> frozenset[str]:
        """The kinds that are never calibrated on, by seed: of pictures and of text."""
        kinds = [*self._makers()]
        return frozenset(kinds[(3 + self.seed) % HELD_BACK :: HELD_BACK])

    @property
    def taught(self) -> frozenset[str]:
        """The other kinds."""
        return frozenset(self._makers()) - self.held_back

    def cases(self, kinds: Collection[str] | None = None) -> Iterator[Case]:
        """Samples without end of all or of some kinds, one or two of each in turn; pictures first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        makers = {name: make for name, make in self._makers().items() if kinds is None or name in kinds}
        for index, name in enumerate(cycle(makers)):
            yield from makers[name](name, random.Random(f"{self.seed} {index} {name}"))

    def _makers(self) -> Mapping[str, Callable[[str, random.Random], Iterator[Case]]]:
        """Kinds and what makes them, text between the pictures."""
        texts = dict.fromkeys(ALONE, self._alone)
        ways = self.ways
        pictures = dict.fromkeys(PICTURES, self._about) if ways.pictures else {}
        rest = {**({"pairs": self._pair} if ways.pictures else {}), **({"tools": self._call} if ways.tools else {}),
                **({"free text": self._free} if ways.free else {})}  # fmt: skip
        left = [iter(kinds.items()) for kinds in (pictures, rest | texts)]
        made: dict[str, Callable[[str, random.Random], Iterator[Case]]] = {}
        for _ in range(max(len(pictures), len(rest | texts))):
            made.update(pair for kinds in left if (pair := next(kinds, None)))
        return made

    def _about(self, name: str, draw: random.Random) -> Iterator[Case]:
        picture = self._picture(name, draw)
        for _ in range(EACH):
            yield Case(name, (picture,), filled(draw, self._next(name, (*OF_PICTURES[name], *ANY))))

    def _pair(self, name: str, draw: random.Random) -> Iterator[Case]:
        kind = draw.choice([*PICTURES])
        pictures = tuple(self._picture(each, draw) for each in (kind, draw.choice([kind, *PICTURES])))
        yield Case(name, pictures, filled(draw, self._next(name, OF_PAIRS)))

    def _alone(self, name: str, draw: random.Random) -> Iterator[Case]:
        yield Case(name, (), filled(draw, self._next(name, ALONE[name])))

    def _call(self, name: str, draw: random.Random) -> Iterator[Case]:
        yield Case(name, (), filled(draw, self._next(name, CALLS)), tools=tools_of(draw))

    def _free(self, name: str, draw: random.Random) -> Iterator[Case]:
        """Text from its first tokens on: alone, and behind a picture, where the model asks about it itself."""
        turn = next(self.turns[name])
        picture = (self._picture(draw.choice([*PICTURES]), draw),) if turn % 2 and self.ways.pictures else ()
        yield Case(name, picture, BEGINNINGS[turn % len(BEGINNINGS)], free=1 + turn)

    def _next(self, name: str, questions: tuple[str, ...]) -> str:
        return questions[next(self.turns[name]) % len(questions)]

    def _picture(self, name: str, draw: random.Random) -> str:
        path = self.folder / f"{name}-{self.seed}-{draw.randrange(1 << 40):010x}.png"
        PICTURES[name](draw).save(path)
        return str(path)
