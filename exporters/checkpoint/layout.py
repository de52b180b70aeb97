"""Where the parts of a checkpoint lie: a plain Hugging Face folder, or training checkpoints of a vision encoder.

A plain folder holds everything. A vision encoder lies in `[checkpoint-NNN/]vision_encoder/`, and the settings of its
processors in `image_processor/` and `video_processor/`, beside it or above its `checkpoint-NNN`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtimes.bundle.manifest import MANIFEST
from ...runtimes.storage.files import read_json
from ...targets.errors import InputError
from .hub import NAME
from .lora.settings import CONFIG, base_of
from .safetensors_files import INDEX, SINGLE

ENCODER = "vision_encoder"
STEP = re.compile(r"checkpoint-(\d+)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """The folder of config.json and the weights, and where to look for other files, the nearest folder first."""

    model: Path
    around: tuple[Path, ...]

    def find(self, name: str, *folders: str) -> Path | None:
        """A file by name, directly in one of the folders around or in one of these inside them."""
        places = (root / inner / name for root in self.around for inner in ("", *folders))
        return next((place for place in places if place.is_file()), None)

    def json(self, name: str, *folders: str) -> dict[str, Any]:
        """The content of such a file; empty where there is none."""
        found = self.find(name, *folders)
        return {} if found is None else read_json(found)


def find_layout(path: str | Path) -> Layout:
    """The layout of a folder; an InputError where no config.json is found.

    Of several `checkpoint-NNN` with a vision encoder the highest number is taken, and a warning says so.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"{path} is not a folder; give the folder of a checkpoint "
            "(`hf download REPOSITORY --local-dir FOLDER` fetches one from the hub)."
        )
    _refuse_adapter(folder)
    chosen = _encoder_below(folder)
    if chosen is not None:
        return Layout(chosen / ENCODER, tuple(_upwards(chosen, folder)))
    if (folder / "config.json").is_file():
        return Layout(folder, (folder, *(_upwards(folder.absolute().parent) if folder.name == ENCODER else ())))
    if (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} is a bundle and has no config.json; expected the folder of the checkpoint that it was made from"
        )
    raise InputError(
        f"{folder} has no config.json; expected the folder that save_pretrained or the hub made, "
        f"or one with {ENCODER}/config.json in it or in its checkpoint-NNN."
    )


def _refuse_adapter(folder: Path) -> None:
    """InputError for the folder of an adapter, alone or mixed with a model."""
    if not (folder / CONFIG).is_file():
        return
    if any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise InputError(f"{folder} holds a model and an adapter ({CONFIG}), and nothing says whether they belong "
                         "together; move the adapter's files to a folder of its own, and name it with --adapter if it "
                         "is to be merged")  # fmt: skip
    base = base_of(folder)
    raise InputError(f"{folder} is an adapter of {base}, not a model; export that model with it: lensmith export "
                     f"{base if NAME.fullmatch(base) else 'FOLDER_OF_THE_BASE'} --adapter {folder}")  # fmt: skip


def _encoder_below(folder: Path) -> Path | None:
    """The folder that holds the `vision_encoder`: this one, or its training checkpoint of the highest number."""
    if _holds_encoder(folder):
        return folder
    steps = {int(match[1]): place for place in folder.iterdir()
             if (match := STEP.fullmatch(place.name)) and _holds_encoder(place)}  # fmt: skip
    if not steps:
        return None
    if len(steps) > 1:
        log.warning("%s has %d checkpoints; taking checkpoint-%d, the highest number", folder, len(steps), max(steps))
    return steps[max(steps)]


def _holds_encoder(folder: Path) -> bool:
    return (folder / ENCODER / "config.json").is_file()


def _upwards(folder: Path, given: Path | None = None) -> Iterator[Path]:
    """A folder, and the one above where it is one of several training checkpoints."""
    yield folder
    if STEP.fullmatch(folder.absolute().name):
        yield given if given is not None and given != folder else folder.absolute().parent
