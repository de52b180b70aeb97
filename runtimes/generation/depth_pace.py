"""How many guesses of a head are worth their time, from how often those at each depth were right."""

from __future__ import annotations

from .draft_pace import LONGEST_PAUSE

COST = 0.25  # of a draft next to a step without any: its step of the head, and one more row for the decoder
FIRST_SHARE, RATE = 0.7, 0.2  # of right drafts, before any is known, and how much the latest counts
HOPE = 0.02  # how fast what is known of a depth is forgotten while drafts end in front of it


class DepthPace:
    """As many drafts as promise most tokens for their time.

    Where none promises any, one is tried now and then, each time behind a pause of twice as many steps.
    """

    def __init__(self, most: int) -> None:
        """`most`: drafts of a step."""
        self._shares = [FIRST_SHARE] * most  # by depth: of drafts that are right, where those in front of them are
        self._wait, self._pause = 1, 1

    def next_count(self) -> int:
        """How many drafts this step, one more, is to have."""
        if best := self._best():
            return best
        if self._wait:
            self._wait -= 1
            return 0
        self._wait = self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return 1

    def learn(self, drafted: int, accepted: int) -> None:
        """Note how many of the drafts of a step were right."""
        for depth in range(min(accepted + 1, drafted)):
            self._shares[depth] += RATE * ((depth < accepted) - self._shares[depth])
        if accepted == drafted < len(self._shares):
            self._shares[drafted] += HOPE * (FIRST_SHARE - self._shares[drafted])
        if accepted:
            self._wait = self._pause = 1

    def _best(self) -> int:
        best, most, tokens, chance = 0, 1.0, 1.0, 1.0
        for count, share in enumerate(self._shares, start=1):
            chance *= share
            tokens += chance
            if tokens / (1 + COST * count) > most:
                best, most = count, tokens / (1 + COST * count)
        return best
