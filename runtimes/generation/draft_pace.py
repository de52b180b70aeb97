"""How many tokens are worth drafting, from how many of the latest drafts were right."""

from __future__ import annotations

LONGEST_PAUSE = 32  # steps without drafts behind some that were all wrong, so that they cost a few percent at most


class DraftPace:
    """Twice as many behind a step whose drafts were all right, and one more than were right behind others.

    Behind a step whose drafts were all wrong there are none for a while, each time for twice as long.
    """

    def __init__(self, first: int, most: int) -> None:
        """`first` and `most`: drafts of a step."""
        self.count, self._most, self._wait, self._pause = first, most, 0, 1

    def pausing(self) -> bool:
        """Whether this step, one more, is without drafts."""
        paused = self._wait > 0
        self._wait -= paused
        return paused

    def learn(self, drafted: int, accepted: int) -> None:
        """Note how many of the drafts of a step were right."""
        if accepted == drafted:
            self.count = min(2 * self.count, self._most)
        elif accepted:
            self.count = accepted + 1
        else:
            self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if accepted:
            self._pause = 1
