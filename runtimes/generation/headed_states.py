"""States of a conversation with those of the draft head that goes along, as they are kept for others."""

from __future__ import annotations

from dataclasses import dataclass

from ..engines.contract import Kept, KeptTokens, States
from .following_head import FollowingHead


@dataclass(frozen=True)
class HeadedStates:
    """See prefix_cache.Keepable."""

    states: States
    head: FollowingHead

    @property
    def sharing(self) -> Kept | None:
        """As of States."""
        return self.states.sharing

    @property
    def recurrent(self) -> bool:
        """As of States."""
        return self.states.recurrent

    def keep(self, begin: int) -> KeptTokens:
        """As of States."""
        return {**self.states.keep(begin), **self.head.keep(begin, self.states.length)}
