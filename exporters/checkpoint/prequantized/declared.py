"""What a checkpoint says of its quantization, and from where: config.json, or a file of the tool that quantized it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....runtimes.storage.files import read_json
from ....targets.errors import InputError

KEYS = ("quantization_config", "compression_config", "quantization")  # the last as MLX writes it
SECTIONS = ("text_config", "llm_config", "vision_config")
FILES = {  # of tools, with the method where the file does not name it
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


@dataclass(frozen=True)
class DeclaredQuantization:
    """A quantization as it is declared: its method in small letters, the settings, and where they stand."""

    method: str
    settings: Mapping[str, Any]
    place: str


def find_declared(folder: Path, config: Mapping[str, Any]) -> DeclaredQuantization | None:
    """The quantization of a checkpoint: of config.json, the outer one first as in transformers, or of a tool's file.

    None for plain floats. InputError for places of config.json that name different methods.
    """
    found = list(_in_config(config)) or list(_in_files(folder))
    for other in found[1:]:
        if other.method != found[0].method:
            raise InputError(
                f"{folder} is quantized by {found[0].method!r} as {found[0].place} says, and by {other.method!r} as "
                f"{other.place} says; remove the one that is wrong"
            )
    return found[0] if found else None


def _in_config(config: Mapping[str, Any]) -> Iterator[DeclaredQuantization]:
    sections = {"": config, **{name: config[name] for name in SECTIONS if isinstance(config.get(name), dict)}}
    for section, values in sections.items():
        for key in KEYS:
            if values.get(key):
                place = f"config.json ({f'{section}.' if section else ''}{key})"
                yield _declared(values[key], place, "mlx" if values.get("quantization") else "")


def _in_files(folder: Path) -> Iterator[DeclaredQuantization]:
    for name, method in FILES.items():
        if (folder / name).is_file():
            settings = read_json(folder / name)
            yield _declared(settings.get("quantization", settings), name, method)


def _declared(settings: Any, place: str, method: str) -> DeclaredQuantization:
    if not isinstance(settings, dict):
        raise InputError(f"{place} is a {type(settings).__name__}, expected an object; copy the file again")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        method = "bitsandbytes"
    named = str(settings.get("quant_method") or method).lower()
    if not named:
        raise InputError(f"{place} names no quant_method, so nothing says how the weights are stored; copy it again")
    return DeclaredQuantization(named, settings, place)
