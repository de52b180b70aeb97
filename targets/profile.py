"""Target profiles: what a device wants, as documented fields of a TOML file, asked by field and never by name."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from .errors import InputError, closest


@dataclass(frozen=True)
class GpuTarget:
    """What a target for TensorRT adds."""

    # "tensorrt_rtx", which also builds where there is no GPU, "tensorrt", which builds on the device, or
    # "onnxruntime_plugin", which has no engines in the bundle.
    flavour: str
    capabilities: tuple[str, ...]  # compute capabilities that one engine serves, as "8.9"
    memory_bytes: int  # of the smallest device of the kind
    context: int  # tokens that the KV cache holds, where the user does not say; each step reads all of it

    @classmethod
    def from_table(cls, fields: dict[str, Any]) -> GpuTarget:
        """Of a table of a profile."""
        return cls(**{**fields, "capabilities": tuple(fields["capabilities"])})

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
    """Names of all profiles."""
    folder = files(__package__) / "profiles"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_target(name: str) -> TargetProfile:
    """The profile of this name; InputError for an unknown one."""
    if name not in target_names():
        raise InputError(f"unknown target {name!r}; {closest(name, target_names())}")
    text = (files(__package__) / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    fields: dict[str, Any] = tomllib.loads(text)
    for key in ("int8_activations", "cpu_features", "lacks"):
        fields[key] = tuple(fields.get(key, ()))
    gpu = fields.pop("gpu", None)
    return TargetProfile(name=name, **fields, gpu=None if gpu is None else GpuTarget.from_table(gpu))
