"""The tensors of a vision encoder by its sizes, as llama.cpp's graphs of them need: one table for each projector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]  # the fastest axis first
SHUFFLE, SHUFFLED = "clip.vision.projector.scale_factor", ("idefics3",)  # patches a side of a token, of which encoders
MERGED = 4  # patches in one image token of the Qwen encoders


def expected_tensors(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> Shapes:
    """Shapes of all tensors by name; `sizes` are those of "clip.vision" without that prefix."""
    return PROJECTORS[metadata["clip.projector_type"]](metadata, sizes)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, sizes: Mapping[str, int], attention: Mapping[str, int]) -> Shapes:
    """One layer; `attention` gives the projections into attention and the multiple of the width that they make."""
    width, inner = sizes["embedding_length"], sizes["feed_forward_length"]
    found = _norm(f"{name}.ln1", width) | _norm(f"{name}.ln2", width) | _linear(f"{name}.attn_out", width, width)
    for part, times in attention.items():
        found |= _linear(f"{name}.{part}", width, times * width)
    return found | _linear(f"{name}.ffn_up", width, inner) | _linear(f"{name}.ffn_down", inner, width)


def _qwen(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> Shapes:
    width, patch, out = sizes["embedding_length"], sizes["patch_size"], sizes["projection_dim"]
    merged, positions = MERGED * width, (sizes["image_size"] // patch) ** 2
    found: Shapes = {
        "v.patch_embd.weight": (patch, patch, 3, width),
        "v.patch_embd.weight.1": (patch, patch, 3, width),
        "v.patch_embd.bias": (width,),
        "v.position_embd.weight": (width, positions),
        **_norm("v.post_ln", width),
        **_linear("mm.0", merged, merged),
        **_linear("mm.2", merged, out),
    }
    for layer in range(sizes["block_count"]):
        found |= _block(f"v.blk.{layer}", sizes, {"attn_qkv": 3})
    for layer, tapped in enumerate(metadata.get("clip.vision.is_deepstack_layers", ())):
        name = f"v.deepstack.{layer}"
        if tapped:
            found |= _norm(f"{name}.norm", merged) | _linear(f"{name}.fc1", merged, merged)
            found |= _linear(f"{name}.fc2", merged, out)
    return found


def _llava(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> Shapes:
    width, patch, out = sizes["embedding_length"], sizes["patch_size"], sizes["projection_dim"]
    found: Shapes = {
        "v.class_embd": (width,),
        "v.patch_embd.weight": (patch, patch, 3, width),
        "v.position_embd.weight": (width, (sizes["image_size"] // patch) ** 2 + 1),
        **_norm("v.pre_ln", width),
        **_linear("mm.0", width, out),
        **_linear("mm.2", out, out),
    }
    for layer in range(sizes["block_count"]):
        found |= _block(f"v.blk.{layer}", sizes, {"attn_q": 1, "attn_k": 1, "attn_v": 1})
    return found


def _qwen2_5(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> Shapes:
    width, inner, patch = sizes["embedding_length"], sizes["feed_forward_length"], sizes["patch_size"]
    merged = MERGED * width
    found: Shapes = {
        "v.patch_embd.weight": (patch, patch, 3, width),
        "v.patch_embd.weight.1": (patch, patch, 3, width),
        "v.post_ln.weight": (width,),
        **_linear("mm.0", merged, merged),
        **_linear("mm.2", merged, sizes["projection_dim"]),
    }
    for name in (f"v.blk.{layer}" for layer in range(sizes["block_count"])):
        found |= {f"{name}.ln1.weight": (width,), f"{name}.ln2.weight": (width,)}
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            found |= _linear(f"{name}.{part}", width, width)
        found |= _linear(f"{name}.ffn_gate", width, inner) | _linear(f"{name}.ffn_up", width, inner)
        found |= _linear(f"{name}.ffn_down", inner, width)
    return found


def _siglip(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> Shapes:
    width, patch = sizes["embedding_length"], sizes["patch_size"]
    square = metadata[SHUFFLE] ** 2
    found: Shapes = {
        "v.patch_embd.weight": (patch, patch, 3, width),
        "v.patch_embd.bias": (width,),
        "v.position_embd.weight": (width, (sizes["image_size"] // patch) ** 2),
        **_norm("v.post_ln", width),
        "mm.model.fc.weight": (width * square, sizes["projection_dim"]),
    }
    for layer in range(sizes["block_count"]):
        found |= _block(f"v.blk.{layer}", sizes, {"attn_q": 1, "attn_k": 1, "attn_v": 1})
    return found


PROJECTORS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, int]], Shapes]] = {
    "qwen3vl_merger": _qwen,
    "qwen2.5vl_merger": _qwen2_5,
    "mlp": _llava,
    **dict.fromkeys(SHUFFLED, _siglip),
}
