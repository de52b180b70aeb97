"""What a model keeps on disk, and whose files it takes: those of the same bundle, computed in the same way."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from ...targets.errors import InputError
from ..bundle.opening import Bundle
from ..engines.arithmetic import arithmetic, own_version
from ..engines.engine_table import Wishes
from ..media.feature_shelf import FeatureShelf
from ..storage.cache_folder import CACHE_BYTES, CacheFolder
from ..values import whole
from .prefix_shelf import PrefixShelf


@dataclass(frozen=True)
class Shelves:
    """Where states and features outlive a process; nowhere without a folder. Raises InputError for none of these."""

    folder: str | Path | None = None
    most_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.most_bytes is not None:
            whole("cache_bytes", self.most_bytes, 1)
            if self.folder is None:
                raise InputError("cache_bytes has no effect without a cache_folder; give that, or leave it out")

    def open(self, bundle: Bundle, wishes: Wishes) -> tuple[PrefixShelf | None, FeatureShelf | None]:
        """Those of a bundle."""
        if self.folder is None:
            return None, None
        owner, most = owner_of(bundle, wishes), self.most_bytes or CACHE_BYTES
        states, features = (CacheFolder(self.folder, most, f"{kind} {owner}") for kind in ("states", "features"))
        return PrefixShelf(states), FeatureShelf(features)


def owner_of(bundle: Bundle, wishes: Wishes) -> str:
    """One line that is another one where states or features would be, too."""
    line = arithmetic(bundle, threads=wishes.threads, native=wishes.native, device=wishes.device)
    where = f"{line or platform.platform()}, device {wishes.device}"
    if (wishes.decode_threads, wishes.chunk) != (None, None):
        where += f", {wishes.decode_threads} threads decode, chunks of {wishes.chunk}"
    return f"lensmith {own_version()}, bundle {bundle.digest}, {where}"
