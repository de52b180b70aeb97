"""What the Qwen families read from config.json in the same way; every refused value is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...targets.errors import InputError
from ..checkpoint import Checkpoint
from ..graphs import Prefixes
from ..spec import ModelSpec, VisionSpec

PREFIXES = Prefixes(vision="model.visual", text="model.language_model", head="lm_head")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}


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
        if key not in self.values:
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

    def activation(self, *supported: str) -> str:
        """Our name of `hidden_act`."""
        return ACTIVATIONS[self.only("hidden_act", *supported)]

    def rope(self) -> Config:
        """The rotary parameters, which older configurations call rope_scaling, with plain frequencies."""
        rope = Config(self.get("rope_parameters") or self.get("rope_scaling") or {}, self.model_type)
        rope.only("rope_type", "default")
        rope.only("mrope_interleaved", True)
        return rope


def tied(config: Config) -> bool:
    """Whether the output head is the token table."""
    text = config.section("text_config")
    return bool(config.values.get("tie_word_embeddings", text.values.get("tie_word_embeddings", False)))


def vision(config: Config) -> VisionSpec:
    """The vision section of Qwen3-VL and Qwen3.5."""
    rope = Config(config.get("rope_parameters", {}), config.model_type)
    return VisionSpec(
        depth=config.need("depth"),
        hidden=config.need("hidden_size"),
        heads=config.need("num_heads"),
        intermediate=config.need("intermediate_size"),
        activation=config.activation("gelu_pytorch_tanh", "gelu"),
        channels=config.get("in_channels", 3),
        patch_size=config.need("patch_size"),
        temporal_patch_size=config.need("temporal_patch_size"),
        merge_size=config.need("spatial_merge_size"),
        positions=config.need("num_position_embeddings"),
        out_hidden=config.need("out_hidden_size"),
        deepstack_layers=tuple(config.get("deepstack_visual_indexes", ())),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        norm_eps=1e-6,  # a constant of the architecture, not a config value
    )


def dropped(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason."""
    unused = {}
    if spec.decoder.tied and f"{PREFIXES.head}.weight" in checkpoint.tensors:
        unused[f"{PREFIXES.head}.weight"] = "tied to the embedding table"
    for name in checkpoint.tensors:
        if name.endswith("rotary_emb.inv_freq"):
            unused[name] = "rotary frequencies are computed from the configuration"
    return unused
