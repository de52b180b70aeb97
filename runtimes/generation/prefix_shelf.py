"""Segments of a prefix cache as files, so that conversations go on behind a restart and in another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..engines.contract import KeptTokens
from ..storage.array_files import Arrays, take_array
from ..storage.cache_folder import CacheFolder
from .token_run import TokenRun

TOKENS, STATE = ("ids", "positions"), "state "


@dataclass(frozen=True)
class Shelved:
    """What a file has of its segment; `behind` is the name of the one in front of it."""

    name: str
    behind: str | None
    tokens: TokenRun
    states: KeptTokens


class PrefixShelf:
    """Segments by name in a folder."""

    def __init__(self, folder: CacheFolder) -> None:
        self.folder = folder
        self._known: dict[str, Shelved | None] = {}  # files that were looked at, without states; None: broken ones
        self._seen = -1

    def look(self) -> list[Shelved]:
        """All segments without their states, those in front first; nothing where none came since the last look."""
        changed = self.folder.changed()
        if changed == self._seen:
            return []
        names, self._seen = self.folder.names(), changed
        self._known = {name: said for name, said in self._known.items() if name in names}
        for name in names - set(self._known):
            self._known[name] = self.folder.read(name, partial(_shelved, name), TOKENS)
        return sorted((said for said in self._known.values() if said), key=lambda said: said.tokens.begin)

    def look_again(self, name: str | None = None) -> None:
        """Have the next look find everything, also what is called `name` by now."""
        self._seen = -1
        if name is not None:
            self._known.pop(name, None)

    def put(self, name: str, behind: str | None, tokens: TokenRun, states: KeptTokens) -> None:
        """Write a segment, unless that which it comes behind is not there."""
        said = {"behind": behind, "begin": tokens.begin, "images": [[begin, key.hex()] for begin, key in tokens.images]}
        arrays = {"ids": tokens.ids, "positions": tokens.positions}
        self.look_again(name)
        self.folder.put(name, said, {**arrays, **{STATE + key: array for key, array in states.items()}}, behind)

    def states(self, name: str, tokens: TokenRun) -> KeptTokens | None:
        """What is kept of a segment; None where there is none, or one that begins elsewhere by now."""
        found = self.folder.read(name, partial(_shelved, name))
        if found is None or found.tokens.begin != tokens.begin or found.tokens.common(tokens) < len(tokens):
            self.look_again(name)
            return None
        return found.states

    def touch(self, names: Sequence[str]) -> None:
        """Mark segments as used, the last one latest."""
        self.folder.touch(names)


def _shelved(name: str, said: dict[str, Any], arrays: Arrays) -> Shelved:
    ids = take_array(arrays, "ids", np.int64, None)
    positions = take_array(arrays, "positions", np.int64, 3, len(ids))
    images = tuple((int(begin), bytes.fromhex(key)) for begin, key in said["images"])
    states = {key.removeprefix(STATE): array for key, array in arrays.items() if key.startswith(STATE)}
    return Shelved(name, said["behind"], TokenRun(ids, positions, images, int(said["begin"])), states)
