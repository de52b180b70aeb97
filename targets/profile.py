"""Target profiles: what a device wants, as documented fields of a TOML file, asked by field and never by name."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from .device import Device
from .errors import InputError, closest

ENDING = ".toml"


@dataclass(frozen=True)
class GpuTarget:
    """What a target for TensorRT adds."""

    # "tensorrt_rtx", which also builds where there is no GPU, "tensorrt", which builds on the device, or
    # "onnxruntime_plugin", which has no engines in the bundle.
    flavour: str
    capabilities: tuple[str, ...]  # compute capabilities that one engine serves, as "8.9"
    context: int  # tokens that the KV cache holds, where the user does not say; each step reads all of it

    @property
    def builds_here(self) -> bool:
        """Whether engines are built where the bundle is exported; else on the device."""
        return self.flavour == "tensorrt_rtx"

    @property
    def has_engines(self) -> bool:
        """Whether its bundles have engines at all; else their graphs are compiled whenever they are loaded."""
        return self.flavour != "onnxruntime_plugin"


@dataclass(frozen=True)
class TargetProfile:
    """One row of `lensmith targets`."""

    name: str
    description: str
    dialect: str  # which lowering its graphs use
    prefill_chunk: int  # tokens
    device: Device  # of several, the smallest
    accuracy_level: int = 4  # MatMulNBits: 4 allows int8 activations, 1 keeps float32
    int8_activations: tuple[str, ...] = ()  # roles of 8-bit matrices whose inputs are rounded to 8 bits as one tensor
    cpu_features: tuple[str, ...] = ()  # any of these, in Linux's names; empty: none is needed
    activations: str = "float32"  # of GPUs: "float16" or "bfloat16"
    lacks: tuple[str, ...] = ()  # precisions that it has no products for; "float32": of activations
    gpu: GpuTarget | None = None  # of targets for TensorRT

    @property
    def halves(self) -> bool:
        """Whether activations, and the states of a decoder, take 16 bits."""
        return self.activations != "float32"


def target_names() -> list[str]:
    """Names of all profiles that lensmith brings."""
    return sorted(entry.name.removesuffix(ENDING) for entry in (files(__package__) / "profiles").iterdir()
                  if entry.name.endswith(ENDING))  # fmt: skip


def target_text(name: str) -> str:
    """The file of a profile, by its name or, ending in .toml, by its path; InputError where there is none."""
    if name.endswith(ENDING):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise InputError(f"the target's file {name} cannot be read ({reason}); check its path") from error
    known = target_names()
    if name not in known:
        close = closest(name, known)
        hint = f"{close} " if close.startswith("did") else ""
        raise InputError(f"unknown target {name!r}; {hint}known: {', '.join(known)}, or the path of a file of your own "
                         "that ends in .toml")  # fmt: skip
    return (files(__package__) / "profiles" / f"{name}{ENDING}").read_text(encoding="utf-8")


def load_target(name: str) -> TargetProfile:
    """The profile of this name, or in a user's own file; InputError for an unknown name and a wrong file."""
    text, stem = target_text(name), Path(name).stem if name.endswith(ENDING) else name
    try:
        values = tomllib.loads(text)
        _refuse_unknown(values, TargetProfile, "")
        _refuse_unknown(values.get("gpu"), GpuTarget, " of the table gpu")
        _refuse_unknown(values.get("device"), Device, " of the table device")
        return msgspec.convert({**values, "name": stem}, TargetProfile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, InputError) as error:
        raise InputError(f"the profile of the target {name} is wrong: {error}; compare it with what "
                         "`lensmith targets cpu` shows") from error  # fmt: skip


def _refuse_unknown(table: Any, kind: type[Any], where: str) -> None:
    """InputError for a key that the fields of a dataclass do not have."""
    known = {field.name for field in fields(kind)} - {"name"}
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            raise InputError(f"it has the key {key!r}{where}; {closest(key, known)}")
