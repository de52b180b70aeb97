"""Values between two stages: in memory up to a limit, beyond it in files, so that more tokens need no more memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Of all streams together. Those of 52 pictures of 576 tokens take 3 GB behind the first products of an MLP 9728 wide.
MEMORY_BYTES = 1 << 30


class Room:
    """What values may take of memory; the others go to a folder, which is emptied first. Without one all may stay."""

    def __init__(self, folder: Path | None, left: int = MEMORY_BYTES) -> None:
        self.folder, self.left, self.names = folder, left, count()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, array: Array) -> Array | Path:
        """The array itself where there is room for it, else the file that it went to."""
        if self.folder is None or array.nbytes <= self.left:
            self.left -= array.nbytes
            return array
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{next(self.names)}.npy"
        np.save(path, array)
        return path

    def give_back(self, held: Array | Path) -> None:
        """What is not needed any more."""
        if isinstance(held, Path):
            held.unlink()
        else:
            self.left += held.nbytes


class Shelf(MutableMapping[str, Array]):
    """The values of one sample by name."""

    def __init__(self, values: Mapping[str, Array], room: Room) -> None:
        self.room = room
        self.held: dict[str, Array | Path] = {}
        self.update(values)

    def __setitem__(self, name: str, array: Array) -> None:
        self.pop(name, None)
        self.held[name] = self.room.put(array)

    def __getitem__(self, name: str) -> Array:
        held = self.held[name]
        return np.load(held, allow_pickle=False) if isinstance(held, Path) else held

    def __delitem__(self, name: str) -> None:
        self.room.give_back(self.held.pop(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)
