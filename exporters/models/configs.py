"""Reading config.json: values with defaults, and clear refusals that name the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...targets.errors import InputError

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "silu": "silu",
               "swish": "silu", "quick_gelu": "quick_gelu"}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A section of config.json, and the model_type that messages name."""

    values: dict[str, Any]
    model_type: str

    def section(self, key: str) -> Config:
        """A part of this section; InputError when it is not there."""
        found = self.values.get(key)
        if not isinstance(found, dict):
            raise InputError(f"config.json has no {key}; expected the configuration of a {self.model_type} checkpoint")
        return Config(found, self.model_type)

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or `default` where there is none or null."""
        found = self.values.get(key)
        return default if found is None else found

    def need(self, key: str) -> Any:
        """A value; InputError when there is none."""
        if self.values.get(key) is None:
            raise InputError(f"config.json has no {key}; it is required for {self.model_type}")
        return self.values[key]

    def only(self, key: str, *supported: object) -> Any:
        """A value among those that are supported, the first when there is none; InputError for others."""
        found = self.get(key, supported[0])
        if found not in supported:
            allowed = ", ".join(map(repr, supported))
            raise InputError(
                f"config value {key} is {found!r}, not supported for {self.model_type}; expected {allowed}"
            )
        return found

    def activation(self, key: str, *supported: str) -> str:
        """Our name of an activation function."""
        return ACTIVATIONS[self.only(key, *supported)]

    def rope(self) -> Config:
        """The rotary parameters, which older configurations call rope_scaling, with plain frequencies."""
        rope = Config(self.get("rope_parameters") or self.get("rope_scaling") or {}, self.model_type)
        rope.only("rope_type", "default")
        rope.only("mrope_interleaved", True)
        return rope
