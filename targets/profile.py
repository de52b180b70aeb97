"""Target profiles: what a device wants, as documented fields of a TOML file, asked by field and never by name."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from .errors import InputError, closest


@dataclass(frozen=True)
class TargetProfile:
    """One row of `lensmith targets`."""

    name: str
    description: str
    dialect: str  # which lowering its graphs use
    accuracy_level: int  # MatMulNBits: 4 allows int8 activations, 1 keeps float32
    int8_activations: tuple[str, ...]  # roles of 8-bit matrices whose inputs are rounded to 8 bits as one tensor
    cpu_features: tuple[str, ...]  # any of these, in Linux's names; empty: none is needed
    prefill_chunk: int  # tokens


def target_names() -> list[str]:
    """Names of all profiles."""
    folder = files(__package__) / "profiles"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_target(name: str) -> TargetProfile:
    """The profile of this name; InputError for an unknown one."""
    if name not in target_names():
        raise InputError(f"unknown target {name!r}; {closest(name, target_names())}")
    text = (files(__package__) / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    fields: dict[str, Any] = tomllib.loads(text)
    for key in ("int8_activations", "cpu_features"):
        fields[key] = tuple(fields[key])
    return TargetProfile(name=name, **fields)
