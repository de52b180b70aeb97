"""Whether metadata and tensors of a GGUF file belong together, so that llama.cpp computes nothing with wrong sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from .encoder_tensors import PROJECTORS, SHUFFLE, SHUFFLED, expected_tensors
from .header import (
    BLOCKS,
    Header,
    damaged,
    read_gguf,
)
from .token_list import check_tokens

MOST = 1 << 24  # of any size; the largest in use is a vocabulary of a quarter of a million
LONG = 1 << 31  # of a context, or an area in pixels
DECODERS = ("qwen3", "llama", "qwen2vl", "qwen3vl", "qwen35")
# Sizes that must be there, by architecture; all are divided by or multiplied with.
SIZES = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
         "attention.head_count_kv", "attention.key_length", "attention.value_length")  # fmt: skip
DELTA = ("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size",
         "full_attention_interval", "rope.dimension_count")  # fmt: skip
VISION = ("image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count", "projection_dim",
          "attention.head_count")  # fmt: skip
F32, F16 = 0, 1  # ggml_type


def check_decoder(path: Path) -> Header:
    """Read and check a language model; InputError where it is not one, or not whole."""
    header = read_gguf(path)
    arch = header.metadata.get("general.architecture")
    if arch not in DECODERS:
        raise damaged(path, f"its architecture is {arch!r}, expected {', '.join(DECODERS)}")
    _check_layers(header, f"{arch}.block_count")
    sizes = {key: _size(header, f"{arch}.{key}") for key in (*SIZES, *(DELTA if arch == "qwen35" else ()))}
    for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        _positive(header, f"{arch}.{key}")
    heads, kv = sizes["attention.head_count"], sizes["attention.head_count_kv"]
    if heads % kv or sizes["attention.key_length"] % 2:
        raise damaged(header.path, f"it has {heads} heads over {kv} of {sizes['attention.key_length']} values")
    _check_sections(header, arch, sizes)
    _check_optional(header, arch, sizes)
    width = sizes["embedding_length"]
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2 or table.shape[0] != width:
        raise damaged(header.path, f"it has no token table of width {width}")
    check_tokens(header, table.shape[1])
    found = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if found != {str(layer) for layer in range(sizes["block_count"])}:
        raise damaged(header.path, f"it has tensors of {len(found)} layers and says {sizes['block_count']}")
    return header


def check_vision(path: Path, hidden: int) -> Header:
    """Read and check a vision encoder for a decoder of this width; InputError where it is not one, or not whole."""
    header = read_gguf(path)
    found = header.metadata.get("general.architecture"), header.metadata.get("clip.projector_type")
    if found[0] != "clip" or found[1] not in PROJECTORS:
        raise damaged(path, f"its architecture and projector are {found}, expected clip and {', '.join(PROJECTORS)}")
    _check_layers(header, "clip.vision.block_count")
    sizes = {key: _size(header, f"clip.vision.{key}") for key in VISION}
    if sizes["projection_dim"] != hidden:
        raise damaged(path, f"its features are {sizes['projection_dim']} wide, those of the language model {hidden}")
    _positive(header, "clip.vision.attention.layer_norm_epsilon")
    _check_image(header, sizes)
    _check_shapes(header, expected_tensors(header.metadata, sizes))
    return header


def _value(header: Header, key: str) -> Any:
    if key not in header.metadata:
        raise damaged(header.path, f"it does not say {key}")
    return header.metadata[key]


def _size(header: Header, key: str) -> int:
    value = _value(header, key)
    if type(value) is not int or not 0 < value < (LONG if key.endswith("context_length") else MOST):
        raise damaged(header.path, f"{key} is {str(value)[:80]!r}, expected a positive number")
    return value


def _check_layers(header: Header, key: str) -> None:
    """Each layer has tensors, so that their number is bounded by what the file holds."""
    if (layers := _size(header, key)) > len(header.tensors):
        raise damaged(header.path, f"{key} is {layers} and it has {len(header.tensors)} tensors")


def _positive(header: Header, key: str) -> None:
    value = _value(header, key)
    if type(value) is not float or not isfinite(value) or not value > 0:
        raise damaged(header.path, f"{key} is {str(value)[:80]!r}, expected a positive number")


def _check_sections(header: Header, arch: str, sizes: Mapping[str, int]) -> None:
    """The axes of M-RoPE share out the rotated pairs of a head."""
    if arch in ("qwen3", "llama"):
        return
    found = _value(header, f"{arch}.rope.dimension_sections")
    rotated = sizes.get("rope.dimension_count", sizes["attention.key_length"])
    good = isinstance(found, np.ndarray) and found.dtype.kind == "i" and len(found) == 4 and (found >= 0).all()
    if not good or int(found.sum()) != rotated // 2 or rotated > sizes["attention.key_length"]:
        raise damaged(header.path, f"its rotary sections are {str(found)[:80]}, expected a sum of {rotated // 2}")


def _check_optional(header: Header, arch: str, sizes: Mapping[str, int]) -> None:
    """Counts of layers of some kind, of which there cannot be more than layers."""
    for key in ("n_deepstack_layers", "nextn_predict_layers"):
        found = header.metadata.get(f"{arch}.{key}", 0)
        if type(found) is not int or not 0 <= found < sizes["block_count"]:
            raise damaged(header.path, f"{arch}.{key} is {str(found)[:80]!r} of {sizes['block_count']} layers")
    found = header.metadata.get(f"{arch}.attention.recurrent_layers")
    if found is not None and (not isinstance(found, np.ndarray) or len(found) != sizes["block_count"]):
        raise damaged(header.path, f"{arch}.attention.recurrent_layers does not name {sizes['block_count']} layers")
    if sizes.get("ssm.time_step_rank", 1) % sizes.get("ssm.group_count", 1):
        raise damaged(header.path, "its value heads are no multiple of its key heads")


def _check_shapes(header: Header, expected: Mapping[str, tuple[int, ...]]) -> None:
    """llama.cpp takes an encoder as it comes, so every tensor must be there, in its shape and a type that it reads."""
    found = {name: entry.shape for name, entry in header.tensors.items()}
    if found != expected:
        name = min(name for name, _ in found.items() ^ expected.items())
        raise damaged(header.path, f"the tensor {name!r} is {found.get(name)}, expected {expected.get(name)}")
    for name, entry in header.tensors.items():
        plain = len(entry.shape) == 1 or name == "v.position_embd.weight"
        types = (F32,) if plain else (F32, F16) if "patch_embd" in name else tuple(BLOCKS)
        if entry.kind not in types:
            raise damaged(header.path, f"the tensor {name!r} has the type {entry.kind}, expected {types}")


def _check_image(header: Header, sizes: Mapping[str, int]) -> None:
    patches, behind = divmod(sizes["image_size"], sizes["patch_size"])
    if header.metadata["clip.projector_type"] in SHUFFLED:  # pixels behind the last patch are not seen
        square = _size(header, SHUFFLE)
        behind = patches % square if patches and square > 1 else 1
    if sizes["embedding_length"] % sizes["attention.head_count"] or behind:
        raise damaged(header.path, "its heads or patches do not divide its width or its image")
    for key in ("image_mean", "image_std"):
        found = _value(header, f"clip.vision.{key}")
        good = (
            isinstance(found, np.ndarray) and found.dtype.kind == "f" and len(found) == 3 and np.isfinite(found).all()
        )
        if not good or (key == "image_std" and not found.all()):
            raise damaged(header.path, f"clip.vision.{key} is {str(found)[:80]}, expected three numbers")
    taps = header.metadata.get("clip.vision.is_deepstack_layers")
    if taps is not None and (not isinstance(taps, np.ndarray) or len(taps) != sizes["block_count"]):
        raise damaged(header.path, f"clip.vision.is_deepstack_layers does not name {sizes['block_count']} layers")
    kind, merge = header.metadata["clip.projector_type"], "clip.vision.spatial_merge_size"
    if kind == "qwen2.5vl_merger":
        found = _value(header, "clip.vision.n_wa_pattern")  # of 1, llama.cpp ends the process: no layer has its mask
        if type(found) is not int or found == 1 or not 0 <= found < MOST:
            raise damaged(
                header.path, f"clip.vision.n_wa_pattern is {str(found)[:80]!r}, expected 0 or a number above 1"
            )
    said = kind == "qwen3vl_merger" or merge in header.metadata  # the older one has 2 where its file does not say
    if kind != "mlp" and said and _size(header, merge) != 2:
        raise damaged(header.path, f"{merge} is not 2")
