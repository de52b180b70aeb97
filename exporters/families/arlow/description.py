"""The Arlow vision encoder: its configuration, its weight names and its one graph. There is no decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....targets.errors import InputError
from ...checkpoint.folder import Checkpoint
from ...config_errors import require
from ...graphs.dialect import Dialect
from ...graphs.graph_files import Graph, Prefixes, encoder_graph
from ...storage.scheme import Policy
from .arlow_spec import ArlowSpec, Locality
from .indexed_grid import index_ports
from .tower import ArlowEncoder

MODEL_TYPE = "arlow"
ARCHITECTURE = "ArlowVLVisionModel"
PREFIXES = Prefixes(vision="", text="", head="")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
MARKS = ("embed_dim", "depth", "num_heads")  # of an encoder's config; the multimodal one has the same model_type


def describe(config: dict[str, Any]) -> ArlowSpec:
    """Turn the config.json of a vision encoder into an ArlowSpec of the default revision.

    Raises InputError for the config of the whole multimodal model and for what is not supported, by name.
    """
    _check_kind(config)
    hidden, heads, depth = (_count(config, key, default) for key, default in zip(
        ("embed_dim", "num_heads", "depth"), (32, 4, 2), strict=True))  # fmt: skip
    head_dim = hidden // max(1, heads)
    merge, progressive = _count(config, "spatial_merge_size", 2), _flag(config, "use_progressive_patches")
    if progressive:
        require(merge % 2 == 0, "spatial_merge_size", merge, "an even number, since use_progressive_patches is on")
    return ArlowSpec(
        depth=depth,
        hidden=hidden,
        heads=heads,
        intermediate=int(hidden * _number(config, "mlp_ratio", 4)),
        activation=_activation(config),
        channels=_channels(config),
        patch_size=_count(config, "patch_size", 14),
        temporal_patch_size=_count(config, "temporal_patch_size", 2),
        merge_size=merge,
        out_hidden=_count(config, "hidden_size", 64),
        deepstack_layers=_deepstack(config, depth),
        rope_theta=_theta(config),
        mrope_sections=_sections(config, head_dim),
        locality=_locality(config),
        progressive=progressive,
    )


def graphs(spec: ArlowSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The one graph of the family."""
    places = index_ports(spec) if dialect.ports.indexed else {}
    return (encoder_graph(ArlowEncoder(dialect, spec, policy), spec, "", opsets, places),)


def depths(spec: ArlowSpec) -> dict[str, int]:
    """Layers by what the names of their tensors begin with."""
    return {"blocks.": spec.depth}


def dropped(checkpoint: Checkpoint, spec: ArlowSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason: those of features that the configuration has off."""
    unused = {}
    for name in checkpoint.tensors:
        tap = re.match(r"deepstack_mergers\.(\d+)\.", name)
        if tap and int(tap[1]) >= len(spec.deepstack_layers):
            unused[name] = "deepstack_visual_indexes names no block for it"
        elif name.startswith("progressive_proj.") and not spec.progressive:
            unused[name] = "use_progressive_patches is off"
    return unused


def _check_kind(config: dict[str, Any]) -> None:
    if "vision_config" in config:
        raise InputError(
            "config.json describes the whole multimodal Arlow model; lensmith compiles its vision encoder alone: "
            "give the folder vision_encoder, whose config.json has embed_dim, depth and num_heads"
        )
    known = ARCHITECTURE in (config.get("architectures") or ()) or all(key in config for key in MARKS)
    require(known, "architectures", config.get("architectures"), f"{ARCHITECTURE}, or {', '.join(MARKS)} beside it")


def _deepstack(config: dict[str, Any], depth: int) -> tuple[int, ...]:
    """The blocks whose output is kept: as listed, or derived from the depth."""
    listed = config.get("deepstack_visual_indexes")
    if listed is None:
        listed = [depth // 4, depth // 2, depth - 4] if depth >= 6 else []
    whole = isinstance(listed, list) and all(type(index) is int for index in listed)
    require(whole, "deepstack_visual_indexes", listed, "a list of block numbers")
    return tuple(sorted({index for index in listed if 0 <= index < depth}))


def _sections(config: dict[str, Any], head_dim: int) -> tuple[int, int, int]:
    """Features of a head for time, height and width: as listed, or thirds of the head size."""
    listed = config.get("mrope_sections")
    if listed is None:
        time = max(1, head_dim // 3)
        height = max(1, (head_dim - time) // 2)
        listed = [time, height, head_dim - time - height]
    whole = isinstance(listed, list) and len(listed) == 3 and all(type(count) is int for count in listed)
    require(whole, "mrope_sections", listed, "three counts, for time, height and width")
    return listed[0], listed[1], listed[2]


def _theta(config: dict[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(kind == "default", "rope_type", repr(kind), "'default'")
    return _number(rope, "rope_theta", _number(config, "rope_theta", 100000.0))


def _locality(config: dict[str, Any]) -> Locality | None:
    if not _flag(config, "use_deformable_attention"):
        return None
    radius, strength = (_number(config, f"deformable_attention_{name}", default)
                        for name, default in (("window", 0.25), ("strength", 4.0)))  # fmt: skip
    return Locality(radius, strength)


def _activation(config: dict[str, Any]) -> str:
    name = config.get("hidden_act", "gelu_pytorch_tanh")
    require(name in ACTIVATIONS, "hidden_act", repr(name), f"one of {', '.join(map(repr, ACTIVATIONS))}")
    return ACTIVATIONS[name]


def _channels(config: dict[str, Any]) -> int:
    count = _count(config, "in_channels", 3)
    require(count == 3, "in_channels", count, "3, for RGB")
    return count


def _count(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    require(type(value) is int and 0 < value < 1 << 20, key, repr(value)[:100], "a whole number from 1 to 1048575")
    return int(value)


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    require(type(value) in (int, float) and abs(value) < 1e18, key, repr(value)[:100], "a number")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    require(type(value) is bool, key, repr(value)[:100], "true or false")
    return bool(value)


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of a checkpoint with this config; Linear weights are (outputs, inputs)."""
    spec = describe(config)
    size, wide = spec.hidden, spec.intermediate
    yield "patch_embed.proj.weight", (size, spec.channels, spec.temporal_patch_size, *[spec.patch_size] * 2)
    for index in range(spec.depth):
        block = f"blocks.{index}"
        yield from _norm(f"{block}.norm1", size)
        yield from _norm(f"{block}.norm2", size)
        yield from _linear(f"{block}.attn.qkv", 3 * size, size)
        yield from _linear(f"{block}.attn.proj", size, size)
        yield from _linear(f"{block}.fc1", wide, size)
        yield from _linear(f"{block}.fc2", size, wide)
    if spec.progressive:
        yield from _linear("progressive_proj", size, size)
    for merger in ("merger", *(f"deepstack_mergers.{tap}" for tap in range(len(spec.deepstack_layers)))):
        yield from _norm(f"{merger}.ln_q", spec.merged_hidden)
        yield from _linear(f"{merger}.mlp.0", spec.merged_hidden, spec.merged_hidden)
        yield from _linear(f"{merger}.mlp.2", spec.out_hidden, spec.merged_hidden)


def _norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}", (size,)) for part in ("weight", "bias"))


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,)))
