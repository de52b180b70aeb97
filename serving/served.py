"""A model as it is served: its name, where its pictures come from, and what this server allows."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtimes.generation.model import Model
from .picture_links import PictureLinks
from .response_shelf import ResponseShelf
from .server_options import ServerOptions


@dataclass(frozen=True)
class Served:
    """What requests to one model are read with."""

    name: str
    model: Model
    options: ServerOptions
    links: PictureLinks
    shelf: ResponseShelf
