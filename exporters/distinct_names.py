"""Names of things that are told apart in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, but that one which was there before gets a number: "a", "a (2)"."""
    counts, found = Counter[str](), list[str]()
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return found


def shortest_ends(paths: Sequence[Path]) -> list[str]:
    """The last folders of each of different paths, as few as no other one ends with."""
    return ["/".join(_end(path.parts, [other.parts for other in paths if other != path])) for path in paths]


def _end(parts: Sequence[str], others: Sequence[Sequence[str]]) -> Sequence[str]:
    ends = (parts[-count:] for count in range(1, len(parts)))
    return next((end for end in ends if all(other[-len(end) :] != end for other in others)), parts)
