"""Whether a conversation is about to go on in the tokens that a vocabulary begins with, those that are met most."""

from __future__ import annotations

import numpy as np

from ..engines.contract import Ints

# Of the 248,044 of Qwen3.5: 98 % of the tokens of this project's pages and source and 99 % of English prose are among
# these, of German 73 %, of Chinese 21 %. A guess of the 2B model takes 0.25 of a step with all of them.
COMMON = 1 << 16
LATEST, SHARE = 100, 0.9  # tokens of a prompt that are looked at, and how many must be among these


def common(ids: Ints, special: int) -> bool:
    """Whether nearly all of the latest ids of text [seq] are below COMMON; those from `special` on are no text."""
    latest = ids[ids < special][-LATEST:]
    return bool(np.count_nonzero(latest < COMMON) >= SHARE * len(latest))
