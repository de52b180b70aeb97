"""The base of all records in a manifest."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record in which a field that is not listed is an error, since nobody would obey it."""
