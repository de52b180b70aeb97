"""From a bundle to the object that runs it: a model where it has a decoder, an encoder where it has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .bundle import Bundle, open_bundle
from .encoder import Encoder
from .model import Model
from .signature import Key


def load(path: str | Path, *, trusted_keys: Iterable[Key] | None = None, **options: Any) -> Any:
    """Load a bundle folder: a Model that answers, or an Encoder where there is no decoder.

    `options` are those of either: threads, context, device, min_pixels, max_pixels, image_limits. Raises InputError for
    what is no bundle and, with `trusted_keys` as of `open_bundle`, for what none of these signed.
    """
    return open_loaded(open_bundle(path, trusted_keys=trusted_keys), **options)


def open_loaded(bundle: Bundle, **options: Any) -> Model | Encoder:
    """As `load`, of a bundle that is open already."""
    return Model(bundle, **options) if answers(bundle) else Encoder(bundle, **options)


def answers(bundle: Bundle) -> bool:
    """Whether a bundle has a decoder, so that it can be asked."""
    return "decoder" in bundle.manifest["graphs"]
