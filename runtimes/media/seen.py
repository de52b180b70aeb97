"""Which images and videos were encoded before, by their content, so that no turn decodes them again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..prompt.messages import SOURCES
from ..prompt.prompt_parts import VideoLayout
from ..storage.files import hash_file
from ..storage.reading import sized
from .frames import MAX_OPENED_BYTES, VideoLimits
from .images import Grid
from .sources import opened_source
from .video import VideoSpec

MOST_SOURCES = 4096  # some hundred bytes each
MOST_HASHED_BYTES = 1 << 30  # of a video: larger ones are decoded in each turn, rather than read once more

Identity: TypeAlias = tuple[Any, ...]  # a hash of the content, and all else that decides on pixels and layout


@dataclass(frozen=True)
class Seen:
    """What is known of a source that was encoded before."""

    grid: Grid
    layout: VideoLayout | None  # of a video
    keys: tuple[bytes, ...]  # of its features


class SeenSources:
    """The latest sources; for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Identity, Seen] = OrderedDict()

    def get(self, identity: Identity | None) -> Seen | None:
        """What is known of a source; None for one that has no identity or was not seen."""
        with self._lock:
            if identity is None or identity not in self._known:
                return None
            self._known.move_to_end(identity)
            return self._known[identity]

    def add(self, identity: Identity | None, seen: Seen) -> None:
        """Remember a source that has an identity."""
        if identity is None:
            return
        with self._lock:
            self._known[identity] = seen
            self._known.move_to_end(identity)
            while len(self._known) > MOST_SOURCES:
                self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()


def identify_video(
    source: Any, block: Mapping[str, Any], spec: VideoSpec, limits: VideoLimits
) -> tuple[Any, Identity | None]:
    """A video as `open_clip` takes it, and what tells it from others, with the wishes of its block.

    Lists of frames, very large files, pipes and what cannot be read have no identity. InputError for no video at all.
    """
    if isinstance(source, list | tuple | np.ndarray):
        return source, None
    opened = opened_source(source, "a video", min(limits.max_file_bytes, MAX_OPENED_BYTES))
    if isinstance(opened, bytes):
        content = hashlib.sha256(opened).hexdigest()
    elif isinstance(opened, Path) and 0 < _size(opened) <= min(MOST_HASHED_BYTES, limits.max_file_bytes):
        content = hash_file(opened)["sha256"]
    else:
        return opened, None
    wishes = sorted((key, value) for key, value in block.items() if key not in ("type", *SOURCES["video"]))
    return opened, (content, repr(wishes), spec)


def _size(path: Path) -> int:
    """Bytes; 0 for what has no size, and for what cannot be read, of which `open_clip` says more."""
    try:
        return sized(path) or 0
    except (OSError, ValueError):
        return 0
