"""How a bundle is best run on a device: what `lensmith tune` finds out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engines.engine_table import Wishes
from ..engines.run_wishes import MOST_THREADS
from ..generation.mtp_drafts import MOST_DRAFTS as MOST_OF_HEAD
from ..generation.ngram_drafts import MOST_DRAFTS as MOST_OF_TEXT
from ..values import whole

RANGES = {
    "threads": (1, 4 * MOST_THREADS),
    "decode_threads": (1, 4 * MOST_THREADS),
    "chunk": (1, 1 << 20),
    "ngram_drafts": (0, MOST_OF_TEXT),
    "head_drafts": (0, MOST_OF_HEAD),
}


@dataclass(frozen=True)
class Tuning:
    """Defaults of a run, for what its caller does not choose; None is what lensmith does on any device.

    Raises InputError for numbers out of range.
    """

    threads: int | None = None  # of images and prompts
    decode_threads: int | None = None  # of the steps behind a prompt
    chunk: int | None = None  # most tokens of a prompt that are computed at once
    ngram_drafts: int | None = None  # most drafts of a step, of the text so far
    head_drafts: int | None = None  # most drafts of a step, of a draft head

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                whole(name, value, least, most)

    @property
    def words(self) -> str:
        """What is other than usual: "decode threads 1, chunk 320"; empty where nothing is."""
        given = {name.replace("_", " "): getattr(self, name) for name in RANGES}
        return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)

    def applied(self, wishes: Wishes) -> Wishes:
        """These wishes, and of the tuning what they leave open."""
        wishes = replace(wishes, chunk=self.chunk)
        if wishes.threads is not None:
            return wishes
        few = None if self.decode_threads == self.threads else self.decode_threads or 0
        return replace(wishes, threads=self.threads, decode_threads=few)


USUAL = Tuning()


def most_drafts(tuned: int | None, usual: int, wished: bool | None) -> int:
    """How many tokens a step may draft: what was tuned, else the `usual` number, which a wish for drafts gets, too."""
    if wished:
        return tuned or usual
    return usual if tuned is None else tuned
