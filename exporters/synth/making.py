"""Checkpoints with random weights of real architectures, to measure size, memory and speed without a download."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtimes.storage.files import disk_full_is_input, read_json, require_space
from ...runtimes.storage.new_folder import (
    PARTIAL,
    check_out,
    put_in_place,
    workplace,
)
from ...targets.errors import InputError, closest
from ..families.families import FAMILIES
from ..progress import Steps
from .architecture import Architecture
from .synth_tokenizer import fill_tokenizer
from .synth_weights import write_checkpoint

CONFIGS = Path(__file__).parent / "synth_configs"
TINY_VOCAB = 2048  # ordinary tokens; the special ones follow
ROOM_BYTES = 16_000_000  # for the tokenizer and the small files

MADE_BY = "made by `lensmith synth`"
README = f"""---
license: apache-2.0
---
Random weights (seed {{seed}}) in the architecture of {{name}}{{tiny}}, {MADE_BY}. Not a trained model.
"""


ARCHITECTURES: Mapping[str, Architecture] = {
    name: architecture for family in FAMILIES.values() for name, architecture in family.synth.items()
}


def synth(
    name: str,
    out: str | Path,
    *,
    tiny: bool = False,
    seed: int = 0,
    progress: Steps | None = None,
    force: bool = False,
) -> Path:
    """Write a checkpoint of random weights to the new folder `out` and return it.

    `progress` is called with the bytes done and the bytes in all. An unknown name, a folder in use or a full disk is
    an InputError, and then nothing is left behind. With `force`, another checkpoint of `synth` at `out` is replaced.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"no architecture {name!r} to synthesize; {closest(name, ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    out = check_out(out, "checkpoint of lensmith synth", _is_synthetic, force=force)
    files = small_files(architecture, tiny=tiny)
    tensors = list(architecture.tensors(files))
    require_space(out, sum(tensor.nbytes for tensor in tensors) + ROOM_BYTES)
    partial = workplace(out, PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        with disk_full_is_input(out):
            partial.mkdir(parents=True)
            _write_small_files(partial, files, architecture)
            readme = README.format(name=name, seed=seed, tiny=" at tiny size" if tiny else "")
            (partial / "README.md").write_text(readme, encoding="utf-8")
            write_checkpoint(partial / architecture.model, tensors, seed, progress or (lambda done, total: None))
            put_in_place(partial, out, last="config.json")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _is_synthetic(folder: Path) -> bool:
    try:
        return MADE_BY in (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def small_files(architecture: Architecture, *, tiny: bool) -> dict[str, dict[str, Any]]:
    """The JSON files of the checkpoint by name: the real ones at full size, cut and renumbered ones when tiny."""
    source = CONFIGS / architecture.folder
    files = {path.relative_to(source).as_posix(): read_json(path) for path in sorted(source.rglob("*.json"))}
    if "tokenizer.json" in files:
        files = _with_vocabulary(files, tiny=tiny)
    if tiny:
        config = files[architecture.config]
        for part, changes in architecture.tiny.items():
            (config[part] if part else config).update(copy.deepcopy(dict(changes)))
        for name, changes in architecture.tiny_files.items():
            files[name].update(copy.deepcopy(dict(changes)))
    return files


def _with_vocabulary(files: dict[str, dict[str, Any]], *, tiny: bool) -> dict[str, dict[str, Any]]:
    """The files with an invented vocabulary of the real size, or of a small one with all token ids moved down."""
    added = files["tokenizer.json"]["added_tokens"]
    size = TINY_VOCAB if tiny else added[0]["id"]
    if tiny:
        files = {name: renumber(data, added[0]["id"], size) for name, data in files.items()}
        config = files["config.json"]
        config.get("text_config", config)["vocab_size"] = -(-(size + len(added)) // 64) * 64
    return files | {"tokenizer.json": fill_tokenizer(files["tokenizer.json"], size)}


def renumber(data: Any, first: int, new_first: int) -> Any:
    """Move the token ids from `first` on down to `new_first`, wherever a key says that its value is a token id."""
    if isinstance(data, list):
        return [renumber(item, first, new_first) for item in data]
    if not isinstance(data, dict):
        return data
    moved = {}
    for key, value in data.items():
        if key == "added_tokens_decoder":
            moved[key] = {str(int(token) - first + new_first): content for token, content in value.items()}
        elif re.search(r"token_(id|index)s?$", key):
            moved[key] = _move(value, first, new_first)
        else:
            moved[key] = renumber(value, first, new_first)
    return moved


def _move(value: Any, first: int, new_first: int) -> Any:
    if isinstance(value, list):
        return [_move(item, first, new_first) for item in value]
    return value - first + new_first if isinstance(value, int) and value >= first else value


def _write_small_files(folder: Path, files: Mapping[str, dict[str, Any]], architecture: Architecture) -> None:
    """A file that is as published is copied to the byte; a changed one is written anew."""
    source = CONFIGS / architecture.folder
    if (source / "chat_template.jinja").is_file():
        shutil.copyfile(source / "chat_template.jinja", folder / "chat_template.jinja")
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if data == read_json(source / name):
            shutil.copyfile(source / name, folder / name)
        else:
            indent = None if name == "tokenizer.json" else 2
            (folder / name).write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
